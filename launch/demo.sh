#!/usr/bin/env bash
# Posterior collapse and its cure on the built-in captions: KL annealing alone, and pretraining + annealing + soft free bits.
# The two train side by side, on a core each. Their folders under runs/demo are replaced.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=runs/demo

train() {
    distvae train "configs/demo/$1.yaml" "run=$runs/$1" 2>&1 |
        tee "$runs/$1.log" | sed --unbuffered --quiet "s/^\(pretrain\|train\) .*/$(printf '%-10s' "$1") &/p"
}

rm -rf "$runs"
mkdir -p "$runs"
echo "training $runs/kla and $runs/pt_kla_sfb, two to four minutes on two cores; their whole output is in $runs/*.log"
set -m # the first in its own process group, which can be ended as a whole
train kla &
kla=$!
set +m
trap 'kill -- -$kla 2>/dev/null || true' EXIT
train pt_kla_sfb || { cat "$runs/pt_kla_sfb.log" >&2; exit 1; }
wait "$kla" || { cat "$runs/kla.log" >&2; exit 1; }

distvae compare "$runs/kla" "$runs/pt_kla_sfb"
printf '\n'
distvae probe "$runs/kla" --beside "$runs/pt_kla_sfb" --labels all --quick
for name in kla pt_kla_sfb; do
    printf '\n%s: from one draw of the prior to another\n' "$name"
    distvae interpolate "$runs/$name" --steps 9 | sed 's/^/  /'
done
