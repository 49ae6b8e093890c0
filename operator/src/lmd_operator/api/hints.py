"""Words for mistakes people really make: what a pattern means, and where a misplaced key belongs."""

from __future__ import annotations

from lmd_operator.api import text

BY_PATH: dict[str, str] = {
    "metadata.name": "a lower-case DNS label of at most 52 characters that starts with a letter, for example llama-70b",
    "metadata.namespace": "a lower-case DNS label of at most 63 characters",
    "spec.model.name": "letters, digits, '.', '_' and '-', at most 63 characters, starting and ending with a letter or digit",
    "spec.model.source.huggingFace.repository": "a repository as organisation/name",
    "spec.model.source.huggingFace.revision": "a branch, tag or commit without spaces",
    "spec.model.source.s3.uri": "an address as s3://bucket/prefix",
    "spec.model.source.s3.region": "a region such as eu-central-1",
    "spec.model.source.persistentVolumeClaim.claimName": "the lower-case name of a PersistentVolumeClaim",
    "spec.model.source.persistentVolumeClaim.path": "a directory inside the claim: relative, without a leading '/'",
    "spec.model.source.image.path": "an absolute directory inside the image",
    "spec.model.source.path.path": "an absolute directory, for example /models/llama-70b",
    "spec.model.cache.claimName": "the lower-case name of a PersistentVolumeClaim",
    "spec.parallelism.tensor": text.DEGREE_OR_AUTO,
    "spec.accelerator.resourceName": "an extended resource as domain/name, for example nvidia.com/gpu",
    "spec.accelerator.memory": "a Kubernetes quantity, for example 80Gi",
    "spec.handler.module": "a Python module path, for example package.module or package.module:function",
    "spec.rollout.maxSurge": text.COUNT_OR_PERCENT,
    "spec.rollout.maxUnavailable": text.COUNT_OR_PERCENT,
    "spec.template.priorityClassName": "the lower-case name of a PriorityClass, or empty",
    "spec.template.serviceAccountName": "the lower-case name of a ServiceAccount, or empty",
    "spec.template.runtimeClassName": "the lower-case name of a RuntimeClass, or empty",
}
"""By field path: what the value must be."""

BY_PATTERN: dict[str, str] = {
    text.DNS_NAME_PATTERN: "a lower-case name of letters, digits, '-' and '.', starting and ending with a letter or digit",
    text.SECRET_KEY_PATTERN: "a key of letters, digits, '-', '_' and '.'",
    text.URL_PATTERN: "a base URL that starts with http:// or https://",
    text.IMAGE_PATTERN: "an image reference without spaces",
    text.SHA256_PATTERN: "a SHA-256 digest of 64 lower-case hexadecimal digits",
    text.QUANTITY_PATTERN: "a Kubernetes quantity such as 500m, 2 or 8Gi, without spaces",
    text.LABEL_KEY_PATTERN: "name or domain/name, of letters, digits, '-', '_' and '.'",
    text.LABEL_VALUE_PATTERN: "at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
}
"""By regular expression: what a person must write. No message ever shows an expression."""

CHOICES = frozenset(
    {
        "spec.parallelism.tensor",
        "spec.rollout.maxSurge",
        "spec.rollout.maxUnavailable",
        "spec.template.priorityClassName",
        "spec.template.serviceAccountName",
        "spec.template.runtimeClassName",
    }
)
"""Fields that take one of two kinds of value; whatever is wrong with the value, `BY_PATH` says all that is allowed."""

MISSING: dict[str, str] = {
    "metadata": "write metadata.name",
    "spec": "write spec.model.source",
    "spec.model": "write model.source",
    "spec.model.source": "say where the weights come from, for example source.persistentVolumeClaim.claimName",
}
"""By field path: how to start what is not there at all."""

_TENSOR = "it derives from spec.parallelism.tensor; set the degree there and remove it"
_NO_TRAINING = "it is a training option, and DeepSpeed inference does not know it; remove it"
MISPLACED: dict[str, str] = {
    "tpSize": _TENSOR,
    "tp_size": _TENSOR,
    "mpSize": _TENSOR,
    "mp_size": _TENSOR,
    "tensorParallel": _TENSOR,
    "tensor_parallel": _TENSOR,
    "nprocPerNode": _TENSOR,
    "nproc-per-node": _TENSOR,
    "parallelLevel": _TENSOR,
    "gpus": _TENSOR,
    "torchrun": _TENSOR,
    "parallelType": "it derives from spec.parallelism.strategy; choose the strategy there and remove it",
    "nnodes": "a replica runs on one node; remove it",
    "deviceIds": "devices are assigned by Kubernetes; remove it",
    "minWorkers": "a pod runs exactly one worker; set spec.replicas for more and remove it",
    "maxWorkers": "a pod runs exactly one worker; set spec.replicas for more and remove it",
    "batchSize": "it derives from spec.engine.concurrency; set that and remove it",
    "maxContextTokens": "set spec.engine.contextTokens and remove it",
    "maxOutTokens": "it derives from spec.engine.contextTokens; set that and remove it",
    "max_out_tokens": "it derives from spec.engine.contextTokens; set that and remove it",
    "checkpoint": "weights are read from spec.model.source; remove it",
    "baseDir": "weights are read from spec.model.source; remove it",
    "base_dir": "weights are read from spec.model.source; remove it",
    "zero": _NO_TRAINING,
    "zeroOptimization": _NO_TRAINING,
    "zero_optimization": _NO_TRAINING,
    "trainBatchSize": _NO_TRAINING,
    "train_batch_size": _NO_TRAINING,
    "optimizer": _NO_TRAINING,
    "hostNetwork": "ranks of two pods would meet on one host; remove it",
    "containers": "the operator writes the containers; use template.env, template.resources and template.image",
    "replicaCount": "set spec.replicas and remove it",
}
"""By key: where the thing belongs that people look for under this name."""
