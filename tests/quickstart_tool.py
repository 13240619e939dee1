"""Replaces a tool of the quickstart: counts to four in its log, keeps the count in a file, and writes its outputs.

python quickstart_tool.py ROOT STAGE OUTPUT ...     ROOT/hold names a stage that waits at two, ROOT/fail one that fails
"""

import sys
import time
from pathlib import Path

root, stage, outputs = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]


def named(file: str) -> bool:
    path = root / file
    return path.is_file() and path.read_text() == stage


steps = root / outputs[0].split('/')[0] if '/' in outputs[0] else root / f'{stage}-folder'
steps.mkdir(exist_ok=True)
count = steps / 'count'
done = int(count.read_text()) if count.is_file() else 0
print(f'{stage} starts at {done}')
for step in range(done + 1, 5):
    print(f'Iter(train) [{step}/4] loss: 1')
    count.with_suffix('.new').write_text(str(step))
    count.with_suffix('.new').replace(count)  # a kill leaves the old count or the new one
    while step == 2 and named('hold'):
        (root / 'holds').write_text(stage)
        time.sleep(0.02)
    if step == 3 and named('fail'):
        raise ValueError('this stage was told to fail')
content = (root / f'{stage}.content').read_text() if (root / f'{stage}.content').is_file() else stage
for output in outputs:
    path = root / output
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == 'last_checkpoint':
        (path.parent / 'iter_4.pth').write_text(content)
        path.write_text(str(path.parent / 'iter_4.pth'))
    else:
        path.write_text(content)
