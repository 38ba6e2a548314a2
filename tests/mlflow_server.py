"""MLflow's own tracking server and registry over SQLite, by its WSGI application: what `mlflow server` serves at its
core, without the parts that need more packages.

`python mlflow_server.py PORT FOLDER` serves on loopback until it is stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(port: int, folder: Path) -> None:
    """Serve; database and artifacts lie in `folder`."""
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    # Both read the environment when they are imported.
    from mlflow.server import app
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
