"""Compiles the steps that docs/preflight.md tables, one after another, and writes that page.

    python launch/preflight_table.py --cache=FOLDER                   # in the environment that has libtpu
    python launch/preflight_table.py --cache=FOLDER --only=weak       # cases whose name holds this

Each report is kept as JSON in the cache's folder, where it is found again; the page has what is there. A case takes
minutes and gigabytes. Leaves out the report itself (preflight.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HALF = '--dtype=bfloat16 --remat=full'
SFT, DECODE = f'--script=sft --length=4096 {HALF}', '--script=grpo --decode --dtype=bfloat16'

# Name -> flags of preflight.py.
CASES = {
    'SFT 8B, v5e:8x8': f'{SFT} --model=llama3-8b --topology=v5e:8x8 --mesh=fsdp=64 --batch_size=64',
    'SFT 8B, v5p:4x4x4': f'{SFT} --model=llama3-8b --topology=v5p:4x4x4 --mesh=fsdp=64 --batch_size=64',
    'SFT 8B, v5p:4x4x4, data=4': f'{SFT} --model=llama3-8b --topology=v5p:4x4x4 --mesh=data=4,fsdp=16 --batch_size=64',
    'DPO 8B, v5e:8x8': f'--script=dpo --length=4096 {HALF} --model=llama3-8b --topology=v5e:8x8 --mesh=fsdp=64 '
    '--batch_size=64',
    'DPO 8B, v5p:4x4x4': f'--script=dpo --length=4096 {HALF} --model=llama3-8b --topology=v5p:4x4x4 --mesh=fsdp=64 '
    '--batch_size=64',
    'PPO 8B, four models, v5p:4x4x4': f'--script=ppo --length=4096 {HALF} --model=llama3-8b --topology=v5p:4x4x4 '
    '--mesh=fsdp=64 --batch_size=64',
    'GRPO 30B-A3B, v6e:16x16': f'--script=grpo --length=4096 {HALF} --model=qwen3-30b-a3b --topology=v6e:16x16 '
    '--mesh=fsdp=256 --batch_size=2048 --group_size=8 --beta=0.01',
    'SFT 70B, v5p:2x2x4': f'{SFT} --model=llama3-70b --topology=v5p:2x2x4 --mesh=fsdp=16 --batch_size=16',
    'SFT 8B, 131,072 tokens, v5p:4x4x4': f'--script=sft --length=131072 {HALF} --model=llama3-8b '
    '--topology=v5p:4x4x4 --mesh=fsdp=4,sequence=16 --batch_size=4',
    'decoding 8B, v5p:4x4x4': f'{DECODE} --length=2048 --model=llama3-8b --topology=v5p:4x4x4 --mesh=fsdp=64 '
    '--batch_size=512',
    'decoding 8B, v5e:4x4, tensor': f'{DECODE} --length=2048 --model=llama3-8b --topology=v5e:4x4 '
    '--mesh=fsdp=2,tensor=8 --batch_size=64',
}
CASES |= {
    f'weak scaling, SFT 8B, {chips} chips': f'{SFT} --model=llama3-8b --topology=v5p:{shape} --mesh=fsdp={chips} '
    f'--batch_size={chips}'
    for chips, shape in ((16, '2x2x4'), (256, '4x8x8'), (1024, '8x8x16'))  # Of 64, SFT 8B on v5p:4x4x4 is the row.
}
CASES |= {
    'weak scaling, SFT 8B, v6e:16x16': f'{SFT} --model=llama3-8b --topology=v6e:16x16 --mesh=fsdp=256 --batch_size=256',
    'weak scaling, SFT 8B, 4 slices of v6e:16x16': f'{SFT} --model=llama3-8b --topology=v6e:16x16 --slices=4 '
    '--mesh=data=4,fsdp=256 --batch_size=1024',
}
# What each way of saving memory gives.
SMALL = f'--script=sft --length=2048 {HALF} --model=llama3-8b --topology=v5e:4x4 --mesh=fsdp=16 --batch_size=16'
CASES |= {
    f'SFT 8B, v5e:4x4{", " if more else ""}{more}': f'{SMALL} {more}'.rstrip()
    for more in (
        *('', '--moment_dtype=bfloat16', '--optimizer=lion', '--optimizer=adafactor', '--offload_optimizer'),
        *('--moment_dtype=int8', '--param_dtype=bfloat16', '--param_dtype=bfloat16 --moment_dtype=int8'),
        *('--lora_rank=16', '--lora_rank=16 --base_dtype=int8', '--lora_rank=16 --base_dtype=nf4'),
    )
}
PAIRS = SMALL.replace('--script=sft', '--script=dpo')
CASES |= {f'DPO 8B, v5e:4x4{more}': f'{PAIRS}{more.replace(",", "")}' for more in ('', ', --offload_reference')}

NOTES = (
    'Groups of chips that span all three axes of a v5p torus (`fsdp=64` on 4x4x4, and `fsdp=4,sequence=16`, whose',
    'weights lie on 64 chips, too) have their gathers and reduce-scatters written as all-reduces by this compiler',
    '(libtpu 0.0.42), at twice the bytes; none of five flags of its that we tried changes that. Those within a plane',
    'do not: `data=4,fsdp=16` sends little more than half of it, and holds four times the state. On v5e:8x8 gathers',
    'are gathers, and gradients are all-reduced.',
    '',
    'Weak scaling, a row of 4,096 tokens a chip: the state falls as 1/N, and what a chip sends does not grow with N',
    'once a group spans all axes; its time stays at 38 % of that of the arithmetic. It breaks where a chip has less to',
    'compute for the same weights: below 1,600 tokens a chip on v5p the network takes longer than the products.',
    'Between slices only gradients travel: each chip sends its own part of them, reduced within the slice first.',
    '',
    'With `--offload_optimizer` the moments travel to the chip and back in every step, 3.7 GiB each way on v5e:4x4;',
    "the times leave the host's link out. `--offload_reference` takes the reference off the update, which is what is",
    'compiled here; during its own pass, which keeps no activations, it is on the chip.',
    '',
    'At 131,072 tokens attention is computed in blocks and not by a kernel, and the last chip of a row has about twice',
    'the mean to look at: the estimate counts neither.',
)


def main() -> int:
    """Runs what the cache does not hold yet; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cache', type=Path, required=True, help='folder of the reports')
    parser.add_argument('--only', default='', help='cases whose name holds this')
    parser.add_argument('--page', type=Path, default=HERE.parent / 'docs/preflight.md', help='what is written')
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    failed = False
    for name, flags in CASES.items():
        path = given.cache / f'{"".join(c if c.isalnum() else "_" for c in name)}.json'
        if given.only in name and not path.exists():
            print(f'{name}: {flags}', flush=True)
            failed |= not compile_case(flags, path)
    reports = {}
    for name in CASES:
        path = given.cache / f'{"".join(c if c.isalnum() else "_" for c in name)}.json'
        if path.exists():
            reports[name] = json.loads(path.read_text())
    given.page.write_text(page(reports))
    return int(failed)


def compile_case(flags: str, path: Path) -> bool:
    """Compiles one case, and keeps its report with the seconds and the memory that this took."""
    began = time.time()
    command = [sys.executable, str(HERE / 'preflight.py'), *flags.split(), '--json']
    environment = {**os.environ, 'TPU_SKIP_MDS_QUERY': '1', 'JAX_PLATFORMS': 'cpu'}
    with tempfile.TemporaryFile('w+') as out:
        process = subprocess.Popen(command, stdout=out, env=environment)
        _, _, used = os.wait4(process.pid, 0)
        out.seek(0)
        text = out.read()
    start = text.find('{')
    if start < 0:
        return False
    spent = {'compiled_in': time.time() - began, 'memory_here': used.ru_maxrss * 1024}
    path.write_text(json.dumps(json.loads(text[start:]) | spent, indent=2))
    return True


def held_back(report: dict) -> str:
    """What stands between a step and the peak rate, the largest first."""
    roof, most = report['roofline'], max(report['collectives'], key=lambda row: row['moved'], default=None)
    again = 1 - report['model_flops'] / report['done_flops']
    terms = {'matrix products below the peak rate': 1 - roof['mfu'] * roof['step'] / roof['compute'] / (1 - again)}
    terms['recomputation'] = again
    lines = [f'{name} ({share:.0%})' for name, share in terms.items() if share > 0.01]
    if most is not None:
        kind = f'{most["kind"]} over {" and ".join(most["axes"])}, {most["moved"] / 1e9:.0f} GB'
        hidden = 'bound by it' if roof['bound'] == 'network' else 'hidden only where it overlaps'
        lines.append(f'{kind} ({roof["network"] / roof["compute"]:.0%} of the time of arithmetic; {hidden})')
    return ', '.join(lines)


def page(reports: dict) -> str:
    """The page of all reports."""
    gib = lambda size: f'{size / 2**30:.2f}'  # noqa: E731
    lines = [
        '# Preflight: what steps need on chips that are not here',
        '',
        "Compiled by the TPU's own compiler from shapes alone; `python launch/preflight_table.py --cache=FOLDER` makes",
        "this page. Memory and collectives are the compiler's, times a roofline (its assumptions are printed with each",
        'report, docs/scale.md). GiB a chip; GB that a chip sends in a step, and behind the plus between slices.',
        '',
        '| step | state | peak | of | fits | GB sent | compute, memory, network s | step s | MFU | serial MFU |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for name, r in reports.items():
        if 'token' in r or 'decoding' in r['script']:
            continue
        state = f'{gib(sum(r["state"].values()))} | {gib(r["peak"])} | {gib(r["capacity"])}'
        row = f'| {name} | {state} | {"yes" if r["fits"] else "no"} |'
        if 'roofline' in r:
            roof = r['roofline']
            across = roof.get('across', 0.0)
            parts = ', '.join(f'{roof[part]:.3f}' for part in ('compute', 'memory', 'network'))
            parts += f', {across:.3f} between slices' if across else ''
            sent = f'{r["moved"] / 1e9:.1f}' + (f' + {r["moved_across"] / 1e9:.2f}' if across else '')
            row += f' {sent} | {parts} | {roof["step"]:.3f} |'
            row += f' {roof["mfu"]:.0%} | {roof["mfu_serial"]:.0%} |'
        else:
            row += ' | | | | |'
        lines.append(row)
    lines += [
        '',
        '| decoding | weights | keys and values | peak | without these, of the weights | ms a token | bound by |',
    ]
    lines.append('|---|---|---|---|---|---|---|')
    for name, r in reports.items():
        if 'token' in r:
            state, token = r['state'], r['token']
            bound = max(token, key=token.get)
            sizes = f'{gib(state["weights"])} | {gib(state["keys and values"])} | {gib(r["peak"])}'
            lines.append(f'| {name} | {sizes} | {r["over_weights"]:.2f} | {1e3 * token[bound]:.2f} | {bound} |')
    lines += ['', *NOTES, '', 'What holds MFU back:', '']
    lines += [f'- {name}: {held_back(r)}' for name, r in reports.items() if 'roofline' in r]
    lines += [
        '',
        'The commands, each with what its compilation took on the machine that made this page:',
        '',
    ]
    lines += [
        f'- {name} ({r["compiled_in"]:.0f} s, {gib(r["memory_here"])} GiB): `python launch/preflight.py {CASES[name]}`'
        for name, r in reports.items()
    ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    sys.exit(main())
