"""How busy the CPUs are with other programs."""

import time

import psutil

SHORTEST = 0.2  # seconds that a measurement needs: the system counts the time of its CPUs in steps of 0.01 s


class CpuMeter:
    """How many of the CPUs that this process may use are kept busy by others, between one call and the next."""

    def __init__(self):
        process = psutil.Process()
        # macOS does not say, and lets every process use all.
        self.cpus = process.cpu_affinity() if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count()))
        self._before = self._times()
        self._others: float | None = None

    def _times(self) -> tuple[float, float, float]:
        """Seconds: by the clock, of the CPUs' work, and of this process' part in it."""
        every = psutil.cpu_times(percpu=True)
        # Linux counts the work of guests in "user", too.
        not_busy = ("idle", "iowait", "guest", "guest_nice")
        chosen = [every[cpu] for cpu in self.cpus if cpu < len(every)]
        busy = sum(sum(times) - sum(getattr(times, name, 0.0) for name in not_busy) for times in chosen)
        return time.perf_counter(), busy, time.process_time()

    def others(self) -> float:
        """CPUs in use by other programs, as the mean since the last call (or the start), from 0 to all of them."""
        if self._others is None:
            time.sleep(max(0.0, self._before[0] + SHORTEST - time.perf_counter()))
        now = self._times()
        seconds, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        if self._others is None or seconds >= SHORTEST:
            self._before = now
            self._others = min(max((busy - own) / seconds, 0.0), float(len(self.cpus)))
        return self._others

    def warning(self) -> str | None:
        """A sentence where others hold more than a quarter of the CPUs."""
        others, count = self.others(), len(self.cpus)
        if others <= count / 4:
            return None
        return f"This machine is busy: other programs use {others:.1f} of {count} CPUs, so all takes longer."
