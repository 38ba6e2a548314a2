"""A cycle's training as a Kubernetes Job, on machines that this worker need not share.

`manifest.py` renders the Job, `api.py` speaks with the API server, `follow.py` starts Jobs and follows them from the
worker, `pod.py` is what runs in the Job's pods. Worker and pod share a volume and the store, nothing else: `mailbox.py`
is the file in which the pod tells the worker what a child process would tell it by its pipe.
"""
