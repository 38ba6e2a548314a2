#!/usr/bin/env bash
# Whether the container's own server answers at HEALTH_URL: an image's health check.
exec python -c '
import os, urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(os.environ["HEALTH_URL"], timeout=4)
' 2>/dev/null
