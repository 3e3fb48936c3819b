import torch

from slms.data.text import BlockSpec, load_blocks
from slms.measure.passes import document_loss, token_nll
from slms.models.base import init_base
from slms.models.io import read_tokenizer
from slms.models.source import EMBEDDED


def tiny():
    torch.manual_seed(0)
    return init_base("stories-1m", seed=0)


def test_token_nll_is_minus_log_softmax_of_the_next_token():
    net, ids = tiny(), torch.randint(0, 2048, (2, 7))
    nll = token_nll(net, ids)
    log_p = net(ids).logits.log_softmax(-1)
    for b in range(2):
        for t in range(6):
            assert torch.isclose(nll[b, t], -log_p[b, t, ids[b, t + 1]], atol=1e-5)


def test_document_loss_sums_every_predicted_token_under_its_document_once():
    net, tokenizer = tiny(), read_tokenizer(EMBEDDED["stories-1m"])
    blocks = load_blocks(BlockSpec("stories", "validation", None, "text", 0, 32, 1024, True), tokenizer)
    loss = document_loss(net, blocks, batch_size=5)
    expected, counts = {}, {}
    for row in range(len(blocks.input_ids)):
        ids = torch.from_numpy(blocks.input_ids[row].astype("int64"))[None]
        nll = token_nll(net, ids)[0].detach()
        for t in range(31):
            document = int(blocks.doc_ids[row, t + 1])
            expected[document] = expected.get(document, 0.0) + float(nll[t])
            counts[document] = counts.get(document, 0) + 1
    for document, total in expected.items():
        assert abs(float(loss.nll[document]) - total) < 1e-3
        assert int(loss.tokens[document]) == counts[document]
    assert int(loss.tokens.sum()) == 31 * 32


def test_evaluation_leaves_the_mode_as_it_was():
    net, tokenizer = tiny().train(), read_tokenizer(EMBEDDED["stories-1m"])
    blocks = load_blocks(BlockSpec("stories", "validation", None, "text", 0, 32, 64, True), tokenizer)
    document_loss(net, blocks, 2)
    assert net.training
