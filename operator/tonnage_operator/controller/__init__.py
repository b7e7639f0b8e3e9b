"""The process that makes clusters as ``ModelWeights`` say: observe, decide (``domain``), act (``kube``)."""
