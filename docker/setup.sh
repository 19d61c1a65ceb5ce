#!/bin/sh
# Once, before the first `docker compose up`: folders, passwords (docker/.env, readable by you alone) and the policy.
# What is there already is left alone. Then, by hand:
#
#   docker compose -f docker/compose.yaml --profile setup run --rm keys      the gate's key pair
#   docker compose -f docker/compose.yaml run --rm logins \
#       'pillsnap registry users add rita --role release_manager --home /var/lib/pillsnap'
#
# and copy the gate's manifest (from: pillsnap data prepare), with the pictures that its links lead to:
#
#   cp --recursive --dereference data/pills/. docker/state/manifest/      or name such a copy in PILLSNAP_MANIFEST
set -eu
cd "$(dirname "$0")"
umask 077
for name in postgres seaweedfs registry trust/keys gate manifest serving; do
    mkdir -p "state/$name"
done
[ -e state/trust/policy.yaml ] || cp ../registry/policy.yaml state/trust/
[ -e state/trust/roles.yaml ] || [ ! -e ../registry/roles.yaml ] || cp ../registry/roles.yaml state/trust/
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
if [ ! -e .env ]; then
    {
        echo "PILLSNAP_UID=$(id -u)"
        echo "PILLSNAP_GID=$(id -g)"
        for name in DATABASE S3 GATE SERVE; do
            echo "PILLSNAP_${name}_PASSWORD=$(secret)"
        done
    } > .env.part
    mv .env.part .env
fi
echo "docker/.env and docker/state are ready"
