"""The controller process: observes the cluster, decides (``domain``) and acts (``kube``) for each ``ModelWeights``."""
