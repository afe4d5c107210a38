"""What `make serve` says before it starts: the address, and three lines to try. Stops where the port is taken."""

import os
import socket
import sys

PORT = int(os.environ.get("PORT", "8000"))
JSON = "-H 'Content-Type: application/json'"

with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", PORT))
    except OSError:
        sys.exit(f"port {PORT} is taken: try PORT={PORT + 51} make serve")

print(f"""
mfa_service will be at http://127.0.0.1:{PORT} (stop with Ctrl-C). Try, in another terminal:

  curl -s localhost:{PORT}/auth/register {JSON} \\
    -d '{{"username": "grace", "password": "first-compiler-1952", "email": "grace@example.com"}}'
  curl -s localhost:{PORT}/auth/login {JSON} -d '{{"username": "grace", "password": "first-compiler-1952"}}'
  curl -s localhost:{PORT}/auth/verify-mfa {JSON} \\
    -d '{{"tempToken": "<tempToken>", "totpCode": "<code of your phone>"}}'

The key for the phone is in manualEntryKey, the QR code in qrCode; `make demo` draws it and walks you through.
""")
