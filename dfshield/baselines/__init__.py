"""The paper's baselines that train a generator beside the student: DaST, DFME, AIT, DFARD."""
