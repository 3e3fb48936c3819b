"""From a dense model to a routed one in forty lines of the package's functions: `python examples/route_by_hand.py`.

The model and the text are the embedded ones, so this runs anywhere, in about a minute. `train.py` does the same and
more: it balances the pathways, distils from the dense model, measures every epoch and keeps checkpoints.
"""

import torch

import slms
from slms.data.text import BlockSpec, load_blocks
from slms.measure.passes import document_loss

# 1. Load a dense model, its tokenizer, and text in blocks of 256 tokens for calibration, training and measurement.
model, tokenizer = slms.load_base("stories-1m")
train = load_blocks(BlockSpec("stories", "train", n_tokens=32_768), tokenizer)
validation = load_blocks(BlockSpec("stories", "validation", n_tokens=8_192, with_labels=True), tokenizer)
tokens = torch.from_numpy(train.input_ids.astype("int64"))

# 2. Split the MLPs of layers 1 to 6 into 32 pathways. A router, fitted to the calibration tokens, chooses 11 per token.
config = slms.RoutingConfig(
    n_pathways=32,
    k=11,
    every_n_layers=1,
    first_layer=1,
    last_layer=-2,
    router="linear",
    gate="unit",
    mean_compensation=True,
)
routed = slms.route(model, config, calibration=tokens[:32])
print(routed)

# 3. Fine-tune for a few steps towards the dense model's predictions.
optimizer = torch.optim.AdamW(routed.parameters(), lr=1e-4)
for batch in tokens[32:].split(8):
    with torch.no_grad():
        wanted = model(batch).logits.log_softmax(-1)
    loss = torch.nn.functional.kl_div(routed(batch).logits.log_softmax(-1), wanted, log_target=True, reduction="none")
    loss.sum(-1).mean().backward()
    optimizer.step()
    optimizer.zero_grad()

# 4. Measure the perplexity of both on the validation text, with 95 % intervals over its documents; save the model.
for name, net in (("dense", model), ("routed", routed)):
    nats = document_loss(net, validation, batch_size=16).compute()
    low, value, high = (torch.tensor([nats.low, nats.value, nats.high]).exp()).tolist()
    print(f"{name}: perplexity {value:.3f} [{low:.3f}, {high:.3f}] on {nats.n} tokens")
slms.save_model(routed, tokenizer, "routed-by-hand")
print(tokenizer.decode(routed.generate(tokens[:1, :12], max_new_tokens=24, do_sample=False)[0]))
