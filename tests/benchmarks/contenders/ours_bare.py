"""The routing worker without what telemetry adds: Faust's sensor, client latencies. Compared with `ours` by pairs."""

from __future__ import annotations

from agents.routing.counters import RouteReport
from app.factory import create_app
from app.roles import Role
from app.settings import load_settings
from app.telemetry.latency import ClientLatency
from app.telemetry.logs import set_up_logging
from app.telemetry.sensor import FaustSensor
from benchmarks.contenders.launch import Orders, end_process, run_faust
from benchmarks.meter import Meter


class _Silent(ClientLatency):
    """Watches nothing."""

    def watch_redis(self, client: object) -> None:
        """Leave the client as it is."""

    def watch_producer(self, producer: object) -> None:
        """Leave the producer as it is."""


class _Observer:
    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_batch(self, report: RouteReport) -> None:
        self._meter.acknowledged(report.records_in)


def main() -> None:
    """Route until all records of the input topic are accounted for."""
    orders = Orders.parse()
    settings = load_settings()
    set_up_logging("worker-route", settings.log.level, settings.log.format)
    app = create_app(settings, Role.ROUTE)
    state = app.flywheel_state
    state.latency = _Silent()
    for sensor in [sensor for sensor in app.sensors if isinstance(sensor, FaustSensor)]:
        app.sensors.remove(sensor)
    if state.routing is None:
        raise RuntimeError("the routing worker was made without its counters: nothing can be measured")
    state.routing.counters.observer = _Observer(Meter(orders.records, orders.reading, on_end=end_process))
    run_faust(app)


if __name__ == "__main__":
    main()
