# shellcheck shell=bash disable=SC2034
# What a site sets: the only file here to edit. As it stands it suits a site with nothing special.
#
# submit.sh reads it on the login node for the account and the partition, and table1.sh for the Python; every node of a
# job reads it before the program starts there, in the folder that the job was submitted from, and the job itself before
# it is requeued. A command that fails here fails the job.

# The account that pays, and the partition that the jobs go to. Empty: the site's default. Options given to submit.sh
# win (--account=NAME, --partition=NAME); a bare `sbatch slurm/train.sh` knows nothing of these two.
account=
partition=

# Modules, where Python, CUDA or MPI come as such.
# module load python/3.12 cuda/12.8

# The Python that has distvae's packages: the checkout's .venv if there is one, else the one on PATH.
if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi

# How often a job may be requeued, whether by itself after an interruption or by Slurm, before it ends for good: a bound on
# what a job costs that only ever starts, say one whose time limit is too short to get anywhere.
max_requeues=100

# The GPUs of a node, where Slurm does not manage them: a job that Slurm gave none sees none otherwise. With
# --processes-per-node N in submit.sh's command.
# export CUDA_VISIBLE_DEVICES=0,1,2,3

# The network interface by which the nodes' processes find each other, where the one that the host's name stands for is
# wrong or slow: `ip -brief address` on a node lists them. Gloo is what CPUs use, NCCL what GPUs use.
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0

# A command put before the program on each node, such as a container whose image holds the packages (the code and the
# config come from the job's own copy all the same). It must pass the environment on and see this folder, the data and
# data.cache.
container=()
# container=(apptainer exec --nv --bind "$PWD" /shared/images/torch.sif)
