"""Child processes: started, waited for, stopped, and never left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.embedded.errors import NotReady, PortTaken, ProcessExited, RunInUse
from app.embedded.leftovers import ProcessRecord, boot_id, end_leftovers, start_time
from app.embedded.ports import LOOPBACK, free_port, with_retry
from app.embedded.process import ManagedProcess, ProcessGroup, Program
from app.embedded.ready import file_present, http_ok, listening, log_shows
from app.embedded.run_directory import RunDirectory

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
PARENT = "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"

# An orchestrator that starts a child, which starts one of its own, and says both numbers.
ORCHESTRATOR = """
import sys, time
from pathlib import Path
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.run_directory import RunDirectory
run = RunDirectory.create(Path(sys.argv[1]))
process = ManagedProcess(run, Program("parent", (sys.executable, "-c", sys.argv[2]), ready=log_shows("\\n")))
process.start()
print(process.pid, process.log().strip(), flush=True)
time.sleep(600)
"""


def eventually(condition: Callable[[], bool], within: float = 15.0) -> bool:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def python(name: str, code: str, **options: object) -> Program:
    return Program(name, (sys.executable, "-c", code), **options)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run") as made:
        yield made


def test_a_process_is_ready_logs_and_stops(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("sleeper", SLEEPER, ready=log_shows("up")))
    process.start()
    pid = process.pid
    assert pid is not None
    assert process.running
    assert process.log_path.read_text() == "up\n"
    assert os.getsid(pid) == pid, "Ctrl-C in the terminal must not reach the child"
    process.check()
    process.stop()
    assert not alive(pid)
    assert process.pid is None
    assert list(run.pids.iterdir()) == []
    process.stop()


def test_the_log_of_a_second_start_is_its_own(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("twice", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"))
    seen = []
    for _ in range(2):
        process.start()
        assert eventually(lambda: process.log().endswith("\n"))
        seen.append(process.log())
        process.stop()
    assert "".join(seen) == process.log_path.read_text()
    assert seen[0] != seen[1]


def test_a_program_that_ends_early_shows_the_end_of_its_log(run: RunDirectory) -> None:
    code = "import sys; [print('line', i) for i in range(100)]; sys.exit('bad setting')"
    with pytest.raises(ProcessExited, match="quitter ended with code 1") as caught:
        ManagedProcess(run, python("quitter", code, ready=log_shows("never"))).start()
    assert "bad setting" in str(caught.value)
    assert "line 99" in caught.value.tail
    assert "line 12\n" not in caught.value.tail


def test_a_program_that_is_never_ready_is_ended(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("slow", SLEEPER, ready=log_shows("never"), ready_within=0.5))
    with pytest.raises(NotReady, match=r"slow was not ready within 0\.5 s(.|\n)*up"):
        process.start()
    assert process.pid is None


def test_a_program_that_cannot_be_run_is_named(run: RunDirectory) -> None:
    with pytest.raises(ProcessExited, match="no-such-program: No such file"):
        ManagedProcess(run, Program("missing", ("no-such-program",), ready=log_shows("never"))).start()


def test_a_program_that_ignores_the_stop_signal_is_killed(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("stubborn", STUBBORN, ready=log_shows("up"), stop_within=0.2))
    process.start()
    pid = process.pid
    assert pid is not None
    process.stop()
    assert not alive(pid)


def test_what_the_child_started_is_stopped_with_it(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("parent", PARENT, ready=log_shows("\n")))
    process.start()
    grandchild = int(process.log())
    assert alive(grandchild)
    process.stop()
    assert not alive(grandchild)


def test_a_child_started_from_a_thread_outlives_the_thread(run: RunDirectory) -> None:
    process = ManagedProcess(run, python("threaded", SLEEPER, ready=log_shows("up")))
    thread = threading.Thread(target=process.start)
    thread.start()
    thread.join()
    # The death signal of a thread's child comes as the thread ends, so a second start bounds the wait for it.
    other = ManagedProcess(run, python("later", SLEEPER, ready=log_shows("up")))
    other.start()
    assert process.running
    process.stop()
    other.stop()


def test_check_tells_of_a_process_that_died(run: RunDirectory) -> None:
    with ProcessGroup() as group:
        process = group.start(ManagedProcess(run, python("victim", SLEEPER, ready=log_shows("up"))))
        group.check()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert eventually(lambda: not process.running)
        with pytest.raises(ProcessExited, match="victim ended by signal 9"):
            group.check()


def test_a_group_stops_in_reverse_and_all_in_spite_of_errors() -> None:
    order: list[str] = []

    class Part:
        def __init__(self, name: str, *, fails: bool = False) -> None:
            self.name, self.fails = name, fails

        def start(self) -> None:
            order.append(f"+{self.name}")

        def stop(self) -> None:
            order.append(f"-{self.name}")
            if self.fails:
                raise OSError(self.name)

        def check(self) -> None:
            return

    group = ProcessGroup()
    for part in (Part("a"), Part("b", fails=True), Part("c")):
        group.start(part)
    with pytest.raises(ExceptionGroup, match="did not stop") as caught:
        group.stop()
    assert [str(error) for error in caught.value.exceptions] == ["b"]
    assert order == ["+a", "+b", "+c", "-c", "-b", "-a"]


def test_readiness_by_port_http_and_file(run: RunDirectory, tmp_path: Path) -> None:
    mark, port = tmp_path / "mark", free_port()
    server = (sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK)
    process = ManagedProcess(run, Program("web", server, cwd=tmp_path, ready=listening(port)))
    assert not listening(port)(process)
    assert not http_ok(f"http://{LOOPBACK}:{port}/")(process)
    process.start()
    assert http_ok(f"http://{LOOPBACK}:{port}/")(process)
    assert not http_ok(f"http://{LOOPBACK}:{port}/absent")(process)
    assert not file_present(mark)(process)
    mark.touch()
    assert file_present(mark)(process)
    process.stop()


def test_a_taken_port_is_told_apart_and_another_is_tried(run: RunDirectory, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    blocker = ManagedProcess(run, Program("blocker", _server(ports[0]), cwd=tmp_path, ready=listening(ports[0])))
    blocker.start()
    tried: list[int] = []

    def start() -> ManagedProcess:
        port = ports[len(tried)]
        tried.append(port)
        # Not `listening`: the blocker answers on the first port.
        process = ManagedProcess(run, Program("web", _server(port), cwd=tmp_path, ready=log_shows("Serving")))
        process.start()
        return process

    web = with_retry(start)
    assert tried == ports
    web.stop()
    tried.clear()
    ports[1] = ports[0]
    with pytest.raises(PortTaken):
        with_retry(start, attempts=2)
    blocker.stop()


def _server(port: int) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", "http.server", str(port), "--bind", LOOPBACK)


def test_free_ports_differ() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def _orchestrate(root: Path) -> tuple[subprocess.Popen[str], int, int]:
    argv = [sys.executable, "-c", ORCHESTRATOR, str(root), PARENT]
    orchestrator = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert orchestrator.stdout is not None
    child, grandchild = map(int, orchestrator.stdout.readline().split())
    orchestrator.stdout.close()
    return orchestrator, child, grandchild


def test_children_die_with_a_killed_orchestrator_and_the_next_run_ends_the_rest(tmp_path: Path) -> None:
    orchestrator, child, grandchild = _orchestrate(tmp_path)
    orchestrator.kill()
    orchestrator.wait()
    assert eventually(lambda: not alive(child)), "the parent-death signal ends the child"
    assert alive(grandchild), "which the signal does not reach"
    with RunDirectory.create(tmp_path):
        assert not alive(grandchild)
    assert list(tmp_path.glob("*/pids/*")) == []


def test_a_live_run_is_left_alone(tmp_path: Path) -> None:
    orchestrator, child, grandchild = _orchestrate(tmp_path)
    with RunDirectory.create(tmp_path) as beside:
        assert alive(child)
        assert alive(grandchild)
        assert len({path.parent for path in tmp_path.glob("*/lock")} | {beside.path}) == 2
    orchestrator.kill()
    orchestrator.wait()
    RunDirectory.create(tmp_path).close()
    assert not alive(grandchild)


def test_a_process_that_was_given_an_old_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as innocent:
        started = start_time(innocent.pid)
        assert started is not None
        for record in (
            ProcessRecord("old", innocent.pid, started - 1, boot_id(), "token"),
            ProcessRecord("old", innocent.pid, started, "another boot", "token"),
        ):
            assert end_leftovers(record) == []
        assert innocent.poll() is None
        assert end_leftovers(ProcessRecord("own", innocent.pid, started, boot_id(), "token")) == [innocent.pid]


def test_orphans_of_a_session_without_leader_need_the_token(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    environment = {**os.environ, "EMBEDDED_RUN_TOKEN": "right"}
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE, env=environment) as leader:
        assert leader.stdout is not None
        orphan = int(leader.stdout.readline())
    assert end_leftovers(ProcessRecord("gone", leader.pid, 1, boot_id(), "wrong")) == []
    assert alive(orphan)
    assert end_leftovers(ProcessRecord("gone", leader.pid, 1, boot_id(), "right")) == [orphan]
    assert not alive(orphan)


def test_a_named_run_is_held_by_one_and_keeps_its_data(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "up") as run:
        (run.data / "kept").touch()
        with pytest.raises(RunInUse, match=f"in use by process {os.getpid()}"):
            RunDirectory.create(tmp_path, "up")
    with RunDirectory.create(tmp_path, "up") as again:
        assert (again.data / "kept").exists()
    with pytest.raises(ValueError, match=r"run id '\.\./up'"):
        RunDirectory.create(tmp_path, "../up")


def test_old_runs_are_removed_but_named_ones_and_the_latest(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, "up").close()
    for _ in range(4):
        RunDirectory.create(tmp_path, keep=2).close()
    RunDirectory.create(tmp_path, keep=2).close()
    drawn = [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "up"]
    assert len(drawn) == 3, "two dead ones and the one just made"
    assert (tmp_path / "up").is_dir()


def test_scratch_folders_go_with_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path)
    scratch = run.scratch("test")
    precious = tmp_path / "precious"
    precious.mkdir()
    with (run.path / "scratch").open("a") as listing:
        listing.write(f"{precious}\n")
    run.close()
    assert not scratch.exists()
    assert precious.exists(), "only folders that bear the mark are removed"
