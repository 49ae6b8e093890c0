"""What a fetch costs: throughput against curl from the same server, and memory whatever the shard's size.

    python tests/bench/fetch_bench.py --mebibytes 256 1024 [--folder DIR] [--gigabits RATE]

For each size: one shard on the hub of the tests, fetched by `lmd-worker fetch`, then by eight curls, a range each, in turns.
Prints one JSON line a size; `ratio` is the median of fetch over curl, from the first byte asked for to the end of the process;
`ratio_with_start` is that of the whole command, and `start_seconds` what the interpreter, imports and the listing take.

Over loopback server and client share the cores, and curl neither hashes nor waits for the disk: `ratio_of_curl_openssl_and_sync` is what is
left of curl's own throughput when openssl then hashes each of its ranges and sync brings it to disk, as a fetch does. With --gigabits,
everything runs in a network namespace whose loopback is that slow (tc, so root), as a real network is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HUB = Path(__file__).parents[1] / "weights" / "hub_server.py"
INSIDE = "LMD_BENCH_INSIDE"
"""Set in the slow namespace."""
STREAMS = 8
TURNS = 5


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--folder", type=Path, help="where bytes lie; memory (/dev/shm) takes the disk out of the measurement")
    parser.add_argument("--gigabits", type=float, help="a second, over a network namespace's loopback")
    options = parser.parse_args()
    if options.gigabits and os.environ.get(INSIDE) != "1":
        link = f"ip link set lo up && tc qdisc add dev lo root tbf rate {options.gigabits * 1000:.0f}mbit burst 4mb latency 20ms"
        shell = ["unshare", "--net", "sh", "-c", f'{link} && exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvpe(shell[0], shell, {**os.environ, INSIDE: "1"})
    for size in options.mebibytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(measure(Path(folder), size * 2**20)), flush=True)


def measure(folder: Path, size: int) -> dict[str, object]:
    """Return seconds and peak memory for one shard of this many bytes."""
    _write_model(folder / "hub" / "acme" / "large", size)
    server = subprocess.Popen([sys.executable, str(HUB), str(folder / "hub")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{json.loads(server.stdout.readline())['port']}"
    fetches, wholes, curls, verified, memory = [], [], [], [], 0
    try:
        _fetch(folder, url)  # the server hashes the shard for its listing, once
        for _ in range(TURNS):
            start, seconds, peak = _fetch(folder, url)
            fetches.append(seconds)
            wholes.append(start + seconds)
            memory = max(memory, peak)
            curls.append(_curl(folder, url, size))
            verified.append(_curl(folder, url, size, then=' && openssl dgst -sha256 "$1" && sync --data "$1"'))
    finally:
        server.communicate()
    mebibytes = size / 2**20
    return {
        "mebibytes": mebibytes,
        "fetch_mebibytes_per_second": round(mebibytes / statistics.median(fetches)),
        "curl_mebibytes_per_second": round(mebibytes / statistics.median(curls)),
        "ratio": round(statistics.median(curl / fetch for fetch, curl in zip(fetches, curls, strict=True)), 2),
        "ratio_with_start": round(statistics.median(curl / whole for whole, curl in zip(wholes, curls, strict=True)), 2),
        "ratio_of_curl_openssl_and_sync": round(statistics.median(curl / both for curl, both in zip(curls, verified, strict=True)), 2),
        "start_seconds": round(statistics.median(whole - fetch for whole, fetch in zip(wholes, fetches, strict=True)), 2),
        "peak_rss_mebibytes": round(memory / 2**20),
    }


def _write_model(folder: Path, size: int) -> None:
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    block = os.urandom(2**20)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size // len(block)):
            file.write(block)


def _fetch(folder: Path, url: str) -> tuple[float, float, int]:
    """Return the seconds to the first byte asked for, those from there to the end of the process, and the peak resident bytes."""
    into = folder / "fetched"
    shutil.rmtree(into, ignore_errors=True)
    order = {"source": {"kind": "huggingFace", "repository": "acme/large", "endpoint": url}, "into": str(into)}
    (folder / "source.json").write_text(json.dumps(order))
    environment = {"PATH": os.environ["PATH"], "LMD_SOURCE_FILE": str(folder / "source.json")}
    launched = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "lmd_worker", "fetch"], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    begun, peak = 0.0, 0
    watched = psutil.Process(process.pid)
    for line in process.stdout:
        if "fetching" in line and not begun:
            begun = time.monotonic()
            break
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    ended = time.monotonic()
    if process.returncode:
        raise SystemExit("the fetch failed")
    return begun - launched, ended - begun, peak


def _curl(folder: Path, url: str, size: int, then: str = "") -> float:
    """Return the seconds eight curls take for a range each, with what a shell does afterwards with each one's file."""
    part = -(-size // STREAMS)
    address = f"{url}/acme/large/resolve/main/model.safetensors"
    begun = time.monotonic()
    script = f'curl -sSfL -r "$2" -o "$1" "$3"{then}'
    ranges = [f"{number * part}-{min((number + 1) * part, size) - 1}" for number in range(STREAMS)]
    processes = [
        subprocess.Popen(["sh", "-c", script, "sh", str(folder / f"curl-{number}"), span, address], stdout=subprocess.DEVNULL)
        for number, span in enumerate(ranges)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("curl failed")
    seconds = time.monotonic() - begun
    for number in range(STREAMS):
        (folder / f"curl-{number}").unlink()
    return seconds


if __name__ == "__main__":
    main()
