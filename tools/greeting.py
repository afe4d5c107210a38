"""What `make serve` says before it starts: the address, and three lines to try."""

import os

print(f"""
mfa_service is at http://127.0.0.1:{os.environ.get("PORT", "8000")} (stop with Ctrl-C). Try:

  curl -s localhost:{os.environ.get("PORT", "8000")}/auth/register -H 'Content-Type: application/json' \\
    -d '{{"username": "ada", "password": "analytical-engine-1843", "email": "ada@example.com"}}'
  curl -s localhost:{os.environ.get("PORT", "8000")}/auth/login -H 'Content-Type: application/json' \\
    -d '{{"username": "ada", "password": "analytical-engine-1843"}}'
  curl -s localhost:{os.environ.get("PORT", "8000")}/auth/verify-mfa -H 'Content-Type: application/json' \\
    -d '{{"tempToken": "<tempToken>", "totpCode": "<code from your phone>"}}'

The key is in manualEntryKey, the QR code in qrCode; `make demo` in another terminal draws it and walks you through.
""")
