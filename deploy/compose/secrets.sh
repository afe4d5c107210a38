#!/bin/sh
# Make the passwords of compose.yaml, each once: what is there already stays.
# The folder is its owner's alone; the files in it can be read by whatever user a container runs as.
set -eu
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 700 "$folder"
put() { [ -s "$folder/$1" ] || cat >"$folder/$1"; chmod 444 "$folder/$1"; }

openssl rand -hex 32 | put database_password
openssl rand -hex 32 | put redis_password
printf 'postgresql://mfa:%s@database/mfa' "$(cat "$folder/database_password")" | put database_url
printf 'redis://:%s@redis:6379/0' "$(cat "$folder/redis_password")" | put redis_url
# Limits are counted for minutes: nothing of them is worth a disk.
printf 'requirepass %s\nsave ""\nappendonly no\nmaxmemory 128mb\nmaxmemory-policy volatile-ttl\n' \
    "$(cat "$folder/redis_password")" | put redis.conf
