"""What a person waits for before the first step: import, and compilation, cold (nothing in the caches) and warm.

    python benchmarks/compile_time.py [--repeats 3]

Each measurement is a fresh process with a cache directory of its own, empty for the cold one. Medians, in seconds. The engine is the
one that RN_GRU_ENGINE chooses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import json, sys, time
start = time.perf_counter()
from rn_rnn_char import ModelState
imported = time.perf_counter()
import report
report.verbose = False
ms = ModelState.load(sys.argv[1])
loaded = time.perf_counter()
ms.restore()
restored = time.perf_counter()
ms.model.trainstep, ms.model.evaluate
print(json.dumps({'import to prompt': imported - start, 'load()': loaded - imported, 'restore(), generation': restored - loaded,
                  'training function': time.perf_counter() - restored}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import engine
    from rn_rnn_char import ModelState
    print(f'{engine.version}, {engine.theano.config.cxx or "no compiler"}')
    with tempfile.TemporaryDirectory() as directory:
        srcfile = Path(directory, 'text.txt')
        srcfile.write_text('The quick brown fox.\n' * 1000)
        ModelState.initfromsrcfile(srcfile, Path(directory, 'work'), layers=3, state_size=256, init_checkpoint=False, verbose=False)
        runs = {'cold': [], 'warm': []}
        for i in range(args.repeats):
            cache = Path(directory, f'cache{i}')
            flags = f'{engine.name.upper()}_FLAGS'
            environment = {**os.environ, flags: f'base_compiledir={cache}', 'RN_GRU_ENGINE': engine.name}
            for kind in runs:
                done = subprocess.run([sys.executable, '-c', PROGRAM, str(Path(directory, 'work'))], cwd=ROOT, env=environment,
                                      capture_output=True, text=True, check=True)
                runs[kind].append(json.loads(done.stdout))
    print(f'{"":24}{"cold":>8}{"warm":>8}')
    medians = {kind: {name: statistics.median(run[name] for run in results) for name in results[0]} for kind, results in runs.items()}
    for name in medians['cold']:
        print(f'{name:24}{medians["cold"][name]:8.2f}{medians["warm"][name]:8.2f}')
    compiling = ('restore(), generation', 'training function')
    print(f'{"compilation together":24}' + ''.join(f'{sum(medians[kind][name] for name in compiling):8.2f}' for kind in runs))


if __name__ == '__main__':
    main()
