"""npm's Haraka and smtp-server."""

import json
import shutil

from machine import HERE, INTEROP

from . import Neighbour

HARAKA = INTEROP / "npm/node_modules/Haraka"
# RFC 7919 appendix A.1.
FFDHE2048 = """-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


class Haraka(Neighbour):
    """Has the plugin haraka.js. With `mx` (the fields of a HarakaMx) it sends all mail there."""

    domain = "haraka.test"

    def __init__(self, folder, address, port, certificate, mx=None):
        home = folder / "haraka"
        config = home / "config"
        (home / "plugins").mkdir(parents=True)
        (home / "queue").mkdir()
        config.mkdir()
        shutil.copy(HERE / "haraka.js", home / "plugins" / "interop.js")
        shutil.copy(certificate.chain, config / "tls_cert.pem")
        shutil.copy(certificate.key, config / "tls_key.pem")
        connection = (HARAKA / "config/connection.ini").read_text()
        for key, default, number in (("bytes", 26214400, 60000000), ("data_line_length", 992, 1000)):
            connection = connection.replace(f"\n{key}={default}\n", f"\n{key}={number}\n")
        for name, text in {
            "plugins": "tls\ninterop\n",
            "me": "mx.haraka.test",
            "smtp.ini": f"listen={address}:{port}\nnodes=0\n",
            "tls.ini": "[redis]\ndisable_for_failed_hosts=false\n",
            "outbound.ini": "local_mx_ok=true\n",
            "connection.ini": connection,
            # Known ones; it would spend half a minute on its own.
            "dhparams.pem": FFDHE2048,
            "interop.json": json.dumps({"mx": mx} if mx else {"take": self.domain}),
        }.items():
            (config / name).write_text(text)
        self.start(home, ["node", HARAKA / "bin/haraka", "-c", home], address, port)

    def arrived(self):
        return self.printed()


class SmtpServer(Neighbour):
    """npm's smtp-server."""

    domain = "node.test"

    def __init__(self, folder, address, port):
        (folder / "smtp-server").mkdir()
        self.start(folder / "smtp-server", ["node", HERE / "sink.js", address, port], address, port)

    def arrived(self):
        return self.printed()
