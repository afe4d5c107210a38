#!/bin/sh
# Programs that pip can't bring, for the tests that use them: installed where root and Debian allow, else left out.
set -u
wanted=""
command -v oathtool >/dev/null || wanted="$wanted oathtool"
command -v zbarimg >/dev/null || wanted="$wanted zbar-tools"
command -v curl >/dev/null || wanted="$wanted curl"
command -v nginx >/dev/null || wanted="$wanted nginx"
command -v caddy >/dev/null || wanted="$wanted caddy"
command -v pgbouncer >/dev/null || wanted="$wanted pgbouncer"
command -v systemd-analyze >/dev/null || wanted="$wanted systemd"
command -v chromium >/dev/null || wanted="$wanted chromium"
command -v node >/dev/null || wanted="$wanted nodejs"
command -v npm >/dev/null || wanted="$wanted npm"
if [ -z "$wanted" ]; then
    :
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $wanted; } >/dev/null \
        || echo "could not install:$wanted (tests that need them are skipped)"
else
    echo "not installed:$wanted (tests that need them are skipped)"
fi

# Of npm: newman runs the collection under docs/, jose is another reader of our tokens (5 still does on Debian's Node).
root=$(dirname "$0")/..
# Node has a list of authorities of its own; a machine may trust others, too, and the other programs do.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ -f "$authorities" ]; then
    export NODE_EXTRA_CA_CERTS="${NODE_EXTRA_CA_CERTS:-$authorities}"
fi
if command -v npm >/dev/null && ! { [ -x "$root/.node/node_modules/.bin/newman" ] && [ -d "$root/.node/node_modules/jose" ]; }; then
    timeout 300 npm install --prefix "$root/.node" --no-audit --no-fund --silent newman@6 jose@5 >/dev/null \
        || echo "could not install: newman, jose (tests that need them are skipped)"
fi
