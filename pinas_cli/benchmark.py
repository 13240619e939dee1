"""Measure training step, path evaluation, inference and loading, and write JSON with the environment.

    pinas benchmark --out work_dirs/benchmark.json
    pinas benchmark --only step --threads 1
    pinas benchmark gpu --budget 440 --out work_dirs/gpu
    pinas benchmark racing --out work_dirs/racing

`gpu` checks a GPU: the correctness of its results, then its speed (docs/gpu.md). Of the options below it takes --out (a
folder), --only, --budget, --device and --tiny. `racing` measures a search's race against the full procedure (--out, a
folder in which a stopped run continues, --only, --threads, --seed and --quick).

Contestants alternate in one run; the median of 5 rounds after 2 warm-ups counts. Each part runs in a separate process.
docs/benchmark.md explains every row. It is a benchmark, not a test: nothing fails because it is slow.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from pinas_cli.machine import cores, cpu_model, package_version
from pinas_cli.options import UsageError, errors_as_line

PARTS = ('step', 'rank', 'inference', 'loading')
PACKAGES = ('torch', 'torchvision', 'timm', 'numpy', 'pillow')


def describe_environment(threads: int) -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'cpu': cpu_model(),
        'machine': platform.machine(),
        'system': platform.system(),
        'cores': cores(),
        'threads': threads,
        'load_average': list(os.getloadavg()),
        'python': platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


# ---- one process per part --------------------------------------------------------------------------------------------


def run_worker(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a task in a new process.

    Returns:
        Its result, or `{'error': ...}`.
    """
    env = os.environ | {name: str(args.threads) for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'result.json')
        command = [sys.executable, '-m', 'pinas_cli', 'benchmark', '--task', task, '--out', str(out)]
        command += ['--threads', str(args.threads), '--rounds', str(args.rounds), '--warmups', str(args.warmups)]
        command += ['--seed', str(args.seed)] + ['--quick'] * args.quick
        status = subprocess.run(command, env=env, check=False).returncode
        if status or not out.is_file():
            return {'error': f'{task} ended with exit status {status}; its messages are above'}
        return json.loads(out.read_text())


def run_task(args: argparse.Namespace) -> None:
    """In the worker: measures one part, or one contestant's memory ('memory: NAME'), and writes the result."""
    import torch

    from pinas_zoo.speed.timing import Settings

    torch.set_num_threads(args.threads)
    settings = Settings(args.quick, args.rounds, args.warmups, args.threads, args.seed)
    part, _, contestant = args.task.partition(': ')
    if contestant:
        result = import_module('pinas_zoo.speed.step').measure_memory(settings, contestant)
    else:
        result = import_module(f'pinas_zoo.speed.{part}').measure(settings)
    result['torch'] = {'threads': torch.get_num_threads(), 'capability': torch.backends.cpu.get_cpu_capability()}
    args.out.write_text(json.dumps(result))


def measure_part(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """A part's rows; those of the training step also with their peak memory, each in a separate process."""
    result = run_worker(part, args)
    if part == 'step' and 'rows' in result:
        for line in result['rows']:
            if 'images_per_second' in line:
                print(f'step: memory of {line["name"]}', file=sys.stderr, flush=True)
                line['memory'] = run_worker(f'memory: {line["name"]}', args)
    return result


# ---- output ----------------------------------------------------------------------------------------------------------


def print_part(part: str, result: dict[str, Any]) -> None:
    """Prints the rows and ratios of a part."""
    print(f'\n{part}')
    if 'error' in result:
        print(f'  {result["error"]}')
        return
    for line in result['rows']:
        rates = [f'{line[k]:9.1f} {k.split("_")[0]}/s' for k in ('images_per_second', 'paths_per_second') if k in line]
        memory = [f'{line["memory"]["peak_mib"]:7.0f} MiB' for _ in range('peak_mib' in line.get('memory', {}))]
        print('  '.join([f'  {line["name"]:40}{line["seconds"]:10.4f} s', *rates, *memory]))
    for name, values in result['ratios'].items():
        print(f'  {name:56}' + '  '.join(f'{kind} {value:.3g}' for kind, value in values.items()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pinas benchmark`."""
    parser.add_argument('what', nargs='?', choices=('cpu', 'gpu', 'racing'), default='cpu', help='default cpu')
    parser.add_argument('--only', help=f'parts, separated by commas; default all: {",".join(PARTS)}')
    parser.add_argument('--out', type=Path, help='JSON file to write; default work_dirs/benchmark.json')
    parser.add_argument('--threads', type=int, default=cores(), help="torch's threads; use 1 on a shared machine")
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds, at least 1; default 5')
    parser.add_argument('--warmups', type=int, default=2, help='rounds before them; default 2')
    parser.add_argument('--seed', type=int, default=0, help='seed of images and paths; default 0')
    parser.add_argument('--quick', '--tiny', action='store_true', help='tiny sizes, to see that everything runs')
    parser.add_argument('--budget', type=float, default=440, help='gpu: seconds in total; default 440')
    parser.add_argument(
        '--device', choices=('cuda', 'cpu'), default='cuda', help='gpu: cpu is a rehearsal; default cuda'
    )
    parser.add_argument('--paths', type=int, default=96, help='racing: number of paths; default 96')
    parser.add_argument('--task', help=argparse.SUPPRESS)


def run_racing(args: argparse.Namespace, names: list[str]) -> int:
    """Measures racing against the full procedure, and writes racing.json."""
    import torch

    from pinas_zoo.files import write_text
    from pinas_zoo.speed.racing import CASES, markdown, measure

    if unknown := sorted(set(names) - set(CASES)):
        raise UsageError(f'--only got {unknown}, allowed: {", ".join(CASES)}')
    torch.set_num_threads(args.threads)
    out = args.out or Path('work_dirs/racing')
    results = measure(out, args.quick, names, args.seed, args.paths)
    values = {'environment': describe_environment(args.threads), 'quick': args.quick, 'seed': args.seed}
    write_text(out / 'racing.json', json.dumps(values | {'cases': results}, indent=1) + '\n')
    print(markdown(results))
    print(f'written: {out / "racing.json"}')
    return 0


def run(args: argparse.Namespace) -> int:
    """Measures the parts, each in its process; returns 1 if one failed."""
    parts = args.only.split(',') if args.only else []
    if args.what == 'gpu':
        from pinas_zoo.speed.gpu.main import check

        with errors_as_line(ValueError):
            return check(args.out or Path('work_dirs/gpu'), args.budget, parts, args.device, args.quick)
    if args.what == 'racing':
        return run_racing(args, parts)
    args.out = args.out or Path('work_dirs/benchmark.json')
    parts = parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f'--only got {unknown}, allowed: {", ".join(PARTS)}')
    if args.threads < 1 or args.rounds < 1 or args.warmups < 0:
        raise UsageError(
            f'got --threads {args.threads}, --rounds {args.rounds} and --warmups {args.warmups}; '
            'allowed are at least 1, 1 and 0'
        )
    if args.task:
        run_task(args)
        return 0
    from pinas_zoo.files import write_text

    values: dict[str, Any] = {
        'environment': describe_environment(args.threads),
        'quick': args.quick,
        'rounds': args.rounds,
        'warmups': args.warmups,
        'seed': args.seed,
        'parts': {},
    }
    for part in parts:
        values['parts'][part] = measure_part(part, args)
        values['environment']['load_average_at_end'] = list(os.getloadavg())
        write_text(args.out, json.dumps(values, indent=2) + '\n')  # after every part: a later one may be stopped
        print_part(part, values['parts'][part])
    print(f'\nwritten: {args.out}')
    return int(any('error' in result for result in values['parts'].values()))
