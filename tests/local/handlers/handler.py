"""A handler as TorchServe's documentation on DeepSpeed writes it: the base class, a model of one's own, `get_ds_engine`."""

from abc import ABC

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from ts.handler_utils.distributed.deepspeed import get_ds_engine
from ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler


class ModelHandler(BaseDeepSpeedHandler, ABC):
    def __init__(self):
        super().__init__()
        self.initialized = False

    def initialize(self, ctx):
        super().initialize(ctx)
        model_path = ctx.model_yaml_config["handler"]["model_path"]
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        ds_engine = get_ds_engine(self.model, ctx)
        self.model = ds_engine.module
        self.initialized = True

    def preprocess(self, requests):
        texts = [request.get("data") or request.get("body") for request in requests]
        texts = [text.decode() if isinstance(text, (bytes, bytearray)) else text for text in texts]
        return self.tokenizer(texts, return_tensors="pt")["input_ids"].to(self.device)

    @torch.inference_mode()
    def inference(self, input_batch):
        return self.model.generate(input_batch, max_new_tokens=12, do_sample=False)

    def postprocess(self, inference_output):
        return [" ".join(map(str, row)) for row in inference_output.tolist()]
