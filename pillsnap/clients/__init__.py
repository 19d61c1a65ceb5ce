"""The clients that prepare a photo before it is sent, and the vectors that hold them to one contract.

``contract.json`` is `pillsnap.core.client_contract.ClientContract` as a file; ``phone`` is the reference in Python,
``pillsnap_client.js`` runs in browsers, ``pillsnap_client.dart`` is for the Flutter app. ``golden/`` says what each
of them must give. See ``README.md`` beside this file.
"""
