#!/bin/sh
# A secret can come by file, so that `docker inspect` does not show it: with NAME_FILE=/run/secrets/name, NAME becomes
# what is in there.
set -eu
for name in $(env | sed -n 's/^\(MFA_[A-Z_]*\|JWT_SECRET\)_FILE=.*/\1/p'); do
    eval "file=\$${name}_FILE"
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
