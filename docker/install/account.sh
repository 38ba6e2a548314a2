#!/usr/bin/env bash
# Make the account that images run as, 1000:1000, and the folders that it may write to. Runs while an image is built.
set -euo pipefail

id=1000
# Ubuntu's images come with somebody who has this number.
if name=$(getent passwd "$id" | cut -d : -f 1) && [ -n "$name" ]; then userdel "$name"; fi
if name=$(getent group "$id" | cut -d : -f 1) && [ -n "$name" ]; then groupdel "$name"; fi
groupadd --gid "$id" flywheel
useradd --uid "$id" --gid "$id" --home-dir /tmp --no-create-home --shell /usr/sbin/nologin flywheel
install -d -o "$id" -g "$id" -m 0750 /var/lib/flywheel /app /app/models /app/data
