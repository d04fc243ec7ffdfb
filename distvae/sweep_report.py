def write_hparams(folder, sweep, trial):
    pass


def write_report(folder):
    pass
