"""Speed and memory of encoding a text: MB/s of source, and bytes of memory a character at the peak.

    python benchmarks/encode_text.py [MB]       about 100 MB each of ASCII, English with a few curly quotes, and Chinese

The time includes both passes, writing and fsync; in brackets without the fsync, the disk's own share. The peak is the
process's resident memory above what it was before, each text in a process of its own.
"""
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


def texts(size):
    """(name, text of about `size` bytes in UTF-8)."""
    library = pathlib.Path(os.__file__).parent
    python = ''.join(path.read_bytes().decode('ascii', 'ignore') for path in sorted(library.glob('*.py')))
    yield 'ascii', python * (size // len(python) + 1)
    english = python.replace(" '", ' \u2018').replace("' ", '\u2019 ')
    yield 'english', english * (size // len(english.encode()) + 1)
    import numpy as np
    points = 0x4e00 + np.random.default_rng(0).zipf(1.2, 1 << 20) % 5000
    points[::40] = ord('\n')
    chinese = points.astype('<u4').tobytes().decode('utf-32-le')
    yield 'chinese', chinese * (size // len(chinese.encode()) + 1)
    yield 'emoji', (chinese[:-1] + '\U0001f600') * (size // len(chinese.encode()) + 1)


def residentpeak():
    """Bytes; from /proc, since getrusage's ru_maxrss starts at the parent process's."""
    status = pathlib.Path('/proc/self/status').read_text()
    return 1024 * int(status.split('VmHWM:')[1].split()[0])


def measure(path):
    """Encode `path` 5 times and print the medians."""
    import encode
    with tempfile.TemporaryDirectory() as directory:
        times, fsync = {}, os.fsync
        before = residentpeak()
        for _ in range(5):
            for kind, os.fsync in (('fsync', fsync), ('none', lambda file: None)):
                start = time.perf_counter()
                charset, data, _ = encode.encodefile(path, os.path.join(directory, 'codes.npy'))
                times.setdefault(kind, []).append(os.path.getsize(path) / 1e6 / (time.perf_counter() - start))
        peak = residentpeak() - before
    print(f"{pathlib.Path(path).stem:8} V={len(charset):<5} {charset.dtype}: {statistics.median(times['fsync']):5.0f} MB/s "
          f"({statistics.median(times['none']):.0f} without fsync), peak {peak / 1e6:.0f} MB = "
          f"{peak / data.numchars:.2f} bytes a character")


if __name__ == '__main__':
    if len(sys.argv) > 1 and not sys.argv[1].isdigit():
        measure(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as directory:
            for name, text in texts(int(sys.argv[1] if len(sys.argv) > 1 else 100) * 1_000_000):
                path = pathlib.Path(directory, name + '.txt')
                path.write_text(text, encoding='utf-8')
                subprocess.run([sys.executable, __file__, path], check=True)
                path.unlink()
