#!/bin/sh
# Health of a container. T2I_HEALTH_URL names what must answer: http://127.0.0.1:8000/health of captioner.serve,
# http://127.0.0.1:52365/api/local_raylet_healthz of a Ray node. Without it, the command itself must start.
set -eu
if [ -n "${T2I_HEALTH_URL:-}" ]; then
    exec wget --quiet --tries=1 --timeout=10 --output-document=/dev/null "$T2I_HEALTH_URL"
fi
exec t2i --version
