"""Plain transformers, one process, one prompt at a time, no code of ours: what every number of ranks must reproduce.

reference.py MODEL REQUESTS.json OUT.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
answers = {}
for request in json.loads(Path(sys.argv[2]).read_text()):
    prompt = torch.tensor([request["prompt"]])
    with torch.inference_mode():
        made = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=request["sampling"]["max_tokens"],
            max_new_tokens=request["sampling"]["max_tokens"],
            output_logits=True,
            return_dict_in_generate=True,
        )
    tokens = made.sequences[0, prompt.shape[1] :]
    scores = torch.cat(made.logits).log_softmax(dim=-1)
    answers[request["id"]] = tokens.tolist()
    answers[f"{request['id']} logprobs"] = scores.gather(1, tokens[:, None])[:, 0].tolist()
Path(sys.argv[3]).write_text(json.dumps(answers))
