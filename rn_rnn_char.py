"""RN-GRU: train multi-layer GRU networks on a text, character by character, and let them write.

    python3 -i rn_rnn_char.py           the interactive shell
    python3 rn_rnn_char.py -h           the command line
"""

import functools
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)        # while ours are imported: a person's program may be called train.py, or have a report.py beside it
try:
    import report
    from cluster import join
    from dataset import CharSet, DataSet
    from errors import CheckpointError, RNGRUError, TextError, WorkDirError
    from model import HyperParams, ModelState, generatestring
    from trials import tryhyper
except ImportError as error:
    if __name__ != '__main__' or error.name not in (None, 'numpy', 'pytensor', 'theano', 'tqdm'):   # None: RN_GRU_ENGINE is wrong
        raise
    pip = (f'`{sys.executable} -m pip install -r requirements.txt`' if sys.prefix != sys.base_prefix
           else 'go into a virtual environment and `pip install -r requirements.txt`')       # elsewhere many systems refuse it
    way = (f". Type `make shell` in the project's directory, which installs what is needed and opens the shell, or {pip}."
           if error.name else '.')
    print(f'RN-GRU: {error}{way}', file=sys.stderr, flush=True)
    os._exit(1)                 # sys.exit would print a traceback under `python3 -i`
finally:
    sys.path.remove(HERE)

# What others may rely on: these, what they have without an underscore, and so what their methods give.
__all__ = ['ModelState', 'HyperParams', 'generatestring', 'tryhyper', 'join', 'CharSet', 'DataSet',
           'RNGRUError', 'TextError', 'WorkDirError', 'CheckpointError']

if __name__ == '__main__':
    if sys.argv[1:]:
        import commandline
        code = commandline.main(sys.argv[1:])
        if not sys.flags.interactive:           # else the prompt comes
            sys.exit(code)
    elif sys.flags.interactive:
        # By name, since a person's own modules may lie beside them.
        ours = {file for module in sys.modules.values() if os.path.dirname(file := getattr(module, '__file__', None) or '') == HERE}
        sys.excepthook = functools.partial(report.complain, ours)
        print("RN-GRU. A new model   ms = ModelState.initfromsrcfile('file.txt', 'workingdir')\n"
              "        an old one    ms = ModelState.load('workingdir')\n"
              '        train         ms.trainmodel(valid_len=50, print_every=100)\n'
              '        write         generatestring(ms, 500)\n'
              '        look inside   ms.surprise(text), ms.findneurons(text), ms.gates(text)\n'
              '        the manual    help(ModelState), help(HyperParams), help(generatestring)')
    else:
        print('RN-GRU works in the interactive shell: python3 -i rn_rnn_char.py\n'
              'and as a command line:                python3 rn_rnn_char.py -h', file=sys.stderr)
