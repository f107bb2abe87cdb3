"""Health check of the image: asks the server whether it lives, on its own port, with TLS if it has a certificate.

Port and certificate are those of the command line of process 1 (`docker run … serve --port 9000`), of variables, or of
the config file that one of them names.
"""

import os
import re
import ssl
import sys
import tomllib
from pathlib import Path
from urllib.request import urlopen


def address(command: str) -> str:
    """Returns where the server says whether it lives.

    Args:
      command: Its command line, with a zero byte between words.
    """
    scheme = "https" if setting("ssl-certfile", command) else "http"
    return f"{scheme}://127.0.0.1:{setting('port', command) or 8000}/health"


def setting(flag: str, command: str) -> object:
    """Returns the last value of a flag, or that of its variable or its key in the config file."""
    found, name = re.findall(rf"\0--{flag}[=\0]([^\0]*)", command), flag.replace("-", "_")
    given = found[-1] if found else os.environ.get(f"ROOST_{name.upper()}")
    if given is None and flag != "config" and (config := setting("config", command)):
        return tomllib.loads(Path(str(config)).read_text()).get(name)
    return given


if __name__ == "__main__":
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    process = Path(sys.argv[1] if sys.argv[1:] else "/proc/1/cmdline")
    urlopen(address(process.read_text()), timeout=4, context=trusting).close()
