"""``pillsnap serve``: the inference server."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--model",
    default="models:/pillsnap@champion",
    show_default=True,
    help="models:/NAME@champion of the registry (followed; proven before it is loaded), or a bundle's path.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to listen on.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that answer.")
@click.option("--threads", type=click.IntRange(min=1), help="Of one inference; by default the cores over the workers.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Photos that a process works on at once: with 2, one is decoded while the other is in the model.",
)
@click.option("--queue", type=click.IntRange(min=0), default=16, show_default=True, help="Requests that may wait.")
@click.option("--deadline", "deadline_s", type=click.FloatRange(min=0.05), default=10.0, show_default=True,
              help="Seconds; what waits longer is answered with 503.")  # fmt: skip
@click.option("--poll", "poll_s", type=click.FloatRange(min=0.1), default=5.0, show_default=True,
              help="Seconds between two looks at the registry.")  # fmt: skip
@click.option(
    "--header-time",
    "header_s",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds that a new connection has for its first headers.",
)
@click.option(
    "--upload-time",
    "upload_s",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="Seconds for the body of a request.",
)
@click.option("--connections", type=click.IntRange(min=1), default=500, show_default=True,
              help="Open at once, in one process; one more is closed at once.")  # fmt: skip
@click.option("--shadow", is_flag=True, help="Let the challenger answer too, unseen, and count where it differs.")
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("workspace/serving"),
    show_default=True,
    help="Where the last proven champion is kept, for a start without the registry.",
)
@click.option("--api-keys", "keys_file", type=click.Path(path_type=Path, dir_okay=False),
              help="File with one API key a line; without it nobody is asked for one.")  # fmt: skip
@click.option("--allow-origin", "origins", multiple=True, help="A web origin whose pages may call; repeatable.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    help="A host name that is answered; repeatable. By default all, and on 127.0.0.1 the local names only.",
)
def serve(
    model: str,
    host: str,
    port: int,
    workers: int,
    threads: int | None,
    concurrency: int,
    queue: int,
    deadline_s: float,
    poll_s: float,
    header_s: float,
    upload_s: float,
    connections: int,
    shadow: bool,
    home: Path,
    keys_file: Path | None,
    origins: tuple[str, ...],
    hosts: tuple[str, ...],
) -> None:
    """Answer photos over HTTP with the champion, and follow it: page at /, API under /v1/narrow."""
    from pillsnap.core.cpu import usable_cores
    from pillsnap.core.errors import ConfigError
    from pillsnap.core.ports import check_free, web_address
    from pillsnap.inference.session import PillSession
    from pillsnap.serving.guard import api_keys
    from pillsnap.serving.process import run
    from pillsnap.serving.settings import ServeSettings

    local = host in ("127.0.0.1", "localhost", "::1")
    if not host:
        raise ConfigError("--host: is empty, which would be every address; say so with 0.0.0.0")
    settings = ServeSettings.checked(
        model=model,
        home=home,
        threads=threads or max(1, usable_cores() // workers),
        concurrency=concurrency,
        queue=queue,
        deadline_s=deadline_s,
        poll_s=poll_s,
        header_s=header_s,
        upload_s=upload_s,
        connections=connections,
        shadow=shadow,
        keys_file=keys_file,
        origins=origins,
        hosts=hosts or (("127.0.0.1", "localhost", "::1") if local else ()),
        workers=workers,
    )
    api_keys(keys_file)
    if settings.followed is None:
        if shadow:
            raise ConfigError(
                "--shadow: there is a challenger in the registry only; give --model models:/NAME@champion"
            )
        PillSession.load(Path(model))  # what is wrong with it is said here, and not by a worker
    check_free(host, port)
    click.echo(f"serving {model} on {web_address(host, port)}  (page: /, API: /openapi.json, figures: /metrics)")
    if settings.followed is None:
        click.echo("note: a bundle that was given as a file is served as it is: no gate has vouched for it")
    if not local and keys_file is None:
        click.echo("note: everybody who reaches this address may ask; --api-keys asks for a key")
    run(settings, host, port)
