#!/usr/bin/env bash
# Trains a tiny pipeline with two processes and with one, compares the weights, kills a process and resumes.
#
# Usage: scripts/test-mpi.sh [LDM]        builds with --features mpi unless given a binary that was
#
# Needs an MPI library with its headers, libclang, and python3. Debian: libopenmpi-dev openmpi-bin libclang-dev.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

ldm=${1:-}
if [ -z "$ldm" ]; then
    cargo build -p ldm-cli --features mpi
    ldm=${CARGO_TARGET_DIR:-target}/debug/ldm
fi
ldm=$(realpath "$ldm")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# Two processes of one thread each, in place of one of all threads.
export RAYON_NUM_THREADS=1
mpi() { local n=$1; shift; mpirun -n "$n" --allow-run-as-root --oversubscribe "$@"; }
fail() { echo "error: $*" >&2; exit 1; }

# The tests' tiny models, on twelve embedded pictures.
sed -n '/^pub(crate) const CONFIG/,/^"#;/p' "$root/tests/support/mod.rs" | sed '1d;$d' > tiny.toml
"$ldm" data twemoji --out data --count 12
double="--set stage1.training.accumulation=4 --set stage2.training.accumulation=4"

echo "== two processes of 2 micro-batches, and one of 4"
"$ldm" train all tiny.toml --data data --out one $double
mpi 2 "$ldm" train all tiny.toml --data data --out two

cat > compare.py <<'PY'
# Largest relative L2 difference of any tensor in the last checkpoints of two runs.
import array, json, os, struct, sys

def tensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()
        for name, info in header.items():
            if name == "__metadata__" or info["dtype"] != "F32":
                continue
            file.seek(start + info["data_offsets"][0])
            values = array.array("f")
            values.frombytes(file.read(info["data_offsets"][1] - info["data_offsets"][0]))
            yield name, values

def last(run, stage):
    folder = os.path.join(run, stage, "checkpoints")
    return os.path.join(folder, max(name for name in os.listdir(folder) if name.startswith("step-")))

worst, count = (0.0, ""), 0
for stage in ("stage1", "stage2"):
    a, b = last(sys.argv[1], stage), last(sys.argv[2], stage)
    assert os.path.basename(a) == os.path.basename(b), (a, b)
    for file in sorted(os.listdir(a)):
        # Weights and their averages. Batch norm's running statistics are those of process 0 alone.
        if not file.endswith(".safetensors") or "optimizer" in file:
            continue
        other = dict(tensors(os.path.join(b, file)))
        for name, x in tensors(os.path.join(a, file)):
            y = other[name]
            # Softmax ignores a bias of the keys: its gradient is nothing but rounding, which Adam makes as large as any other.
            if "running" in name or name.endswith("to_k.bias"):
                continue
            count += 1
            size = sum(v * v for v in x) ** 0.5
            difference = sum((v - w) ** 2 for v, w in zip(x, y)) ** 0.5
            worst = max(worst, (difference / size if size else difference, f"{stage}/{file} {name}"))
print(f"{count} tensors, largest relative L2 difference {worst[0]:.2e} ({worst[1]})")
sys.exit(worst[0] > 1e-5)
PY
python3 compare.py one two || fail "two processes train something else than one"

echo "== a killed process ends the run, which goes on from its last checkpoint with another number of processes"
mpi 2 "$ldm" train all tiny.toml --data data --out killed > log 2>&1 &
job=$!
until ls killed/stage2/checkpoints/step-00000004 > /dev/null 2>&1; do
    kill -0 $job 2> /dev/null || { cat log; fail "the run ended before it could be killed"; }
    sleep 0.02
done
# The second of the two, by what its launcher told it.
for process in $(pgrep -P "$(pgrep -P $job -x mpirun || echo $job)"); do
    grep -qz '^OMPI_COMM_WORLD_RANK=1$' "/proc/$process/environ" && kill -9 "$process"
done
if wait $job; then cat log; fail "the run succeeded without one of its processes"; fi
grep -q "signal 9" log || { cat log; fail "nothing was said of the killed process"; }
"$ldm" train all tiny.toml --data data --out killed --resume $double
python3 compare.py one killed || fail "the resumed run ended elsewhere"

echo "== an error in one process ends all"
cp -r data broken
for picture in $(ls broken/*.png | head -6); do echo text > "$picture"; done
if timeout 60 mpirun -n 2 --allow-run-as-root --oversubscribe "$ldm" \
    train vae tiny.toml --data broken --out failed --set data.strict=true > log 2>&1; then
    fail "damaged data were accepted"
elif [ $? -eq 124 ]; then
    fail "the run hangs after an error"
fi
grep -q "error:" log || { cat log; fail "the error was not printed"; }

echo "== Ctrl-C in one process stops all after the step, with a checkpoint"
mpi 2 "$ldm" train vae tiny.toml --data data --out stopped --steps 1000 > log 2>&1 &
job=$!
until [ -s stopped/stage1/metrics.jsonl ]; do sleep 0.05; done
for process in $(pgrep -P "$(pgrep -P $job -x mpirun || echo $job)"); do
    grep -qz '^OMPI_COMM_WORLD_RANK=0$' "/proc/$process/environ" && kill -INT "$process"
done
wait $job || { cat log; fail "the stopped run failed"; }
grep -q "stopped after" log || { cat log; fail "the run was not stopped"; }
echo "== several devices in each of several processes are refused once"
if mpi 2 "$ldm" train vae tiny.toml --data data --out both --device flex,flex > log 2>&1; then
    fail "they were accepted"
fi
[ "$(grep -c "error: --device flex,flex names several devices" log)" = 1 ] || { cat log; fail "the refusal was not said, or not once"; }
[ ! -e both ] || fail "something was written"
echo "all well"
