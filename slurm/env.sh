# shellcheck shell=bash disable=SC2034
# Site settings: the only file here to edit. The defaults suit a site without special needs.
#
# On the login node, submit.sh reads the account and the partition from it, and table.sh the Python. Each node of a job
# reads it before the program starts, in the folder of submission, and the job reads it before it is requeued. A command
# that fails here fails the job.

# The account to charge, and the partition of the jobs. Empty: the site's default. Options of submit.sh take precedence
# (--account=NAME, --partition=NAME). A bare `sbatch slurm/train.sh` ignores both settings.
account=
partition=

# Environment modules that provide Python, CUDA or MPI.
# module load python/3.12 cuda/12.8

# The Python with distvae's packages: the checkout's .venv if it exists, otherwise the one on PATH.
if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

# Most times that a job is requeued, by itself after an interruption or by Slurm. This limits the cost of a job that makes
# no progress, for example because its time limit is too short.
max_requeues=100

# The GPUs of a node, where Slurm does not manage GPUs: without this, a job that Slurm gave no GPUs sees none. Also pass
# --processes-per-node N to submit.sh.
# export CUDA_VISIBLE_DEVICES=0,1,2,3

# The network interface between nodes, if that of the host name is wrong or slow. `ip -brief address` lists a node's
# interfaces. CPUs communicate by Gloo, GPUs by NCCL.
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# A command that runs the program on each node, such as a container whose image has the packages. (The code and the config
# still come from the job's copy.) It must pass on the environment and have access to this folder, the data and data.cache.
container=()
# container=(apptainer exec --nv --bind "$PWD" /shared/images/torch.sif)
