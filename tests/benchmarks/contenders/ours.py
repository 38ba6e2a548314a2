"""The routing worker as it is deployed, with an observer on its counters."""

from __future__ import annotations

from agents.routing.counters import CounterObserver, RouteReport
from app.factory import create_app
from app.roles import Role
from app.settings import load_settings
from app.telemetry.logs import set_up_logging
from benchmarks.contenders.launch import Orders, end_process, run_faust
from benchmarks.meter import Meter
from benchmarks.profiling import ProfileKind, profiler


class _Observer:
    """Tells the meter of every batch, and whoever observed before."""

    def __init__(self, meter: Meter, before: CounterObserver | None) -> None:
        self._meter = meter
        self._before = before

    def on_batch(self, report: RouteReport) -> None:
        self._meter.acknowledged(report.records_in)
        if self._before is not None:
            self._before.on_batch(report)


def main() -> None:
    """Route until all records of the input topic are accounted for."""
    orders = Orders.parse()
    settings = load_settings()
    set_up_logging("worker-route", settings.log.level, settings.log.format)
    app = create_app(settings, Role.ROUTE)
    routing = app.flywheel_state.routing
    if routing is None:
        raise RuntimeError("the routing worker was made without its counters: nothing can be measured")
    routing.counters.observer = _Observer(_meter(orders), routing.counters.observer)
    run_faust(app)


def _meter(orders: Orders) -> Meter:
    if not orders.profile:
        return Meter(orders.records or 2**62, orders.reading, on_end=end_process)
    looking = profiler(ProfileKind(orders.profile))

    def end() -> None:
        orders.reading.with_suffix(".profile").write_text(looking.stop())
        end_process()

    return Meter(orders.records, orders.reading, on_start=looking.start, on_end=end)


if __name__ == "__main__":
    main()
