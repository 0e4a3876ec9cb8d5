"""Lines of PyTorch programs.

The world defines the names of the dtypes, so that the twin computes in float64. Numbers are first
rounded to 16 bits, so they are the same in every dtype.
"""

from __future__ import annotations

import re

from tools.fuzz.draw import Draw

DTYPES = ["float32", "bfloat16", "float16", "float64"]


def numbers(shape: str, dtype: str, scale: str = "") -> str:
    made = f"torch.randn({shape}, dtype=torch.double, device='cpu')"
    return f"({scale}{made}).bfloat16().to({dtype})"


def program(draw: Draw) -> list[str]:
    return draw.choice([losses, linear_losses, layers, optimizers, optimizers])(draw)


# -- losses -----------------------------------------------------------------------------------


def losses(draw: Draw) -> list[str]:
    dtype = draw.pick(DTYPES)
    rows, classes = draw.pick(["4", "1", "7", "0"]), draw.pick(["5", "2", "3", "1", "40"])
    places = draw.pick(["", "", "", ", 3", ", 2, 2", ", 0"])
    single = draw.one_in(8)
    shape = classes if single else f"{rows}, {classes}{places}"
    labels = "()" if single else f"({rows},{places.lstrip(',') + ',' if places else ''})"
    scale = draw.pick(["3 * ", "", "", "100 * ", "1e4 * ", "1e-3 * "])
    layout = draw.pick(["", "", ".transpose(0, -1).contiguous().transpose(0, -1)", ".expand(2, -1, -1)[0]",
                        "[..., ::1]", ".flip(0)", "[::2]", ".to(memory_format=torch.channels_last)"])  # fmt: skip
    target = draw.pick([
        f"torch.randint({classes}, {labels})", f"torch.randint({classes}, {labels})", "torch.softmax(x.detach(), -1)",
        f"torch.randint({classes}, {labels}).int()", "torch.rand_like(x)", f"torch.randint({classes}, {labels}).to(torch.uint8)",
        f"torch.randint(-1, {classes}, {labels})", f"torch.randint({classes}, {labels}).float()", f"torch.full({labels}, -100)",
        f"torch.randint({classes}, {labels})[:-1]", f"torch.randint({classes}, {labels})[..., None]", f"torch.full({labels}, {classes})",
        f"torch.where(torch.rand({labels}) < 0.5, -100, torch.randint({classes}, {labels}))", f"torch.zeros({labels}, dtype=bool)",
        "torch.softmax(x.detach(), -1).requires_grad_()", "torch.softmax(x.detach(), -1).double()", "torch.zeros_like(x)",
        f"torch.randint({classes}, {labels}).to(torch.int8)", f"torch.nn.functional.one_hot(torch.randint({classes}, {labels}), {classes})",
    ])  # fmt: skip
    lines = [
        f"x = {numbers(shape, dtype, scale)}{layout}",
        f"x.requires_grad_({draw.pick(['True', 'True', 'True', 'False'])})",
        f"y = {target}",
    ]
    if draw.one_in(6):
        edit = draw.choice(["x[0] = float('inf')", "x[0, 0] = float('nan')", "x[:, 0] = float('-inf')", "x[0] = float('-inf')",
                            "x[0] = 1e30"])  # fmt: skip
        lines.insert(1, edit)
    options = _loss_options(draw, classes, dtype)
    for _ in range(draw.randint(1, 3)):
        call = f"F.cross_entropy(x, y{options})"
        if draw.one_in(4):
            call = f"F.CrossEntropyLoss({options.lstrip(', ')})(x, y)"
        lines += _reading(draw, call, "x")
    return lines


REDUCTIONS = ["'sum'", "'none'", "'mean'", "'x'"]


def _loss_options(draw: Draw, classes: str, dtype: str) -> str:
    given = []
    if draw.one_in(2):
        given.append(f"reduction={draw.pick(REDUCTIONS)}")
    if draw.one_in(3):
        weight = draw.pick([
            f"torch.linspace(0, 1, {classes}, dtype={dtype})", f"torch.ones({classes}, dtype={dtype})",
            f"torch.linspace(1, 2, {classes}, dtype=torch.double).bfloat16().to({dtype})",
            f"torch.zeros({classes}, dtype={dtype})", f"torch.ones({classes}).double()", f"torch.ones({classes} + 1)",
            f"torch.linspace(0, 2, {classes})", f"-torch.ones({classes}, dtype={dtype})",
            f"torch.ones({classes}, dtype={dtype}, requires_grad=True)",
        ])  # fmt: skip
        given.append(f"weight={weight}")
    if draw.one_in(3):
        given.append(f"label_smoothing={draw.pick(['0.1', '0.0', '1.0', '2.0', '-0.1'])}")
    if draw.one_in(4):
        given.append(f"ignore_index={draw.pick(['1', '0', '-1', '255', '-100'])}")
    return "".join(f", {option}" for option in given)


def _reading(draw: Draw, call: str, leaf: str) -> list[str]:
    context = draw.pick(["", "", "", "with torch.no_grad(): ", "with torch.autocast('cpu'): ",
                         "with torch.inference_mode(): "])  # fmt: skip
    after = draw.pick([
        "l.sum().backward()", "l.backward()", "(3 * l).sum().backward()", "l.sum().backward(retain_graph=True)",
        f"torch.autograd.grad(l.sum(), {leaf})", f"torch.autograd.grad(torch.autograd.grad(l.sum(), {leaf}, create_graph=True)[0].square().sum(), {leaf})",
        "l.item()", "l.detach()", "(l * torch.linspace(1, 2, l.numel()).reshape(l.shape)).sum().backward()",
        "(1e-4 * l).sum().backward()", "(l * l).sum().backward()", "copy.deepcopy(l)", "l.mul_(2)",
    ])  # fmt: skip
    between = draw.pick(
        ["", "", "", f"{leaf}.grad = None", f"{leaf}.data.mul_(2)", "l.sum().backward()",
         f"{leaf}.detach().mul_(2)"]
    )  # fmt: skip
    return [f"{context}l = {call}", *filter(None, [between]), after]


def linear_losses(draw: Draw) -> list[str]:
    dtype, rows, classes = (
        draw.pick(DTYPES),
        draw.pick(["4", "7", "1", "0"]),
        draw.pick(["5", "2", "1", "33"]),
    )
    units = draw.pick(["3", "1", "8"])
    single, places = draw.one_in(8), draw.pick(["", "", "", ", 2"])
    labels = "()" if single else f"({rows},{places.lstrip(',') + ',' if places else ''})"
    target = draw.pick([
        f"torch.randint({classes}, {labels})", f"torch.randint({classes}, {labels})", f"torch.randint({classes}, {labels}).int()",
        f"torch.rand({rows}, {classes}, dtype={dtype})", f"torch.randint(-1, {classes}, {labels})", f"torch.full({labels}, -100)",
        f"torch.full({labels}, {classes})", f"torch.randint({classes}, {labels}).float()", f"torch.randint({classes}, (3, 2, 1))",
    ])  # fmt: skip
    bias = draw.pick(["", "", f", linear_bias={numbers(classes, dtype)}", f", linear_bias=torch.ones(99, dtype={dtype})",
                      f", linear_bias=torch.ones({classes}).double()"])  # fmt: skip
    if places and bias:
        bias = f", linear_bias={numbers(classes + places, dtype)}"
    options = bias + _loss_options(draw, classes, dtype)
    width = units if draw.randrange(10) else "9"
    return [
        f"x = {numbers(units if single else f'{rows}, {units}', dtype)}.requires_grad_()",
        f"W = {numbers(f'{classes}{places}, {width}', draw.pick([dtype, dtype, dtype, *DTYPES]))}.requires_grad_()",
        f"y = {target}",
        *_reading(draw, f"F.linear_cross_entropy(x, W, y{options})", draw.choice("xW")),
    ]


# -- layers -----------------------------------------------------------------------------------

ACTIVATIONS = [
    "nn.ReLU()", "nn.Tanh()", "nn.GELU()", "nn.Sigmoid()", "nn.GELU('tanh')", "nn.SiLU()", "nn.ELU(0.5)", "nn.ELU()",
    "nn.LeakyReLU(0.2)", "nn.LeakyReLU()", "nn.Softplus()", "nn.Softplus(2.0)", "nn.Identity()", "nn.ReLU(inplace=True)",
    "nn.ReLU6()", "nn.Hardtanh()", "nn.Mish()", "nn.Softplus(1, 5)", "nn.LeakyReLU(-0.5)", "nn.SELU()", "nn.LayerNorm(4)",
    "nn.Dropout(0.0)", "nn.Flatten()", "nn.ELU(inplace=True)", "nn.Softmax(-1)", "nn.PReLU()", "nn.LeakyReLU(0.0)",
]  # fmt: skip
MODULE_LINES = [
    "out = m(x)", "out.square().sum().backward()", "m = convert(m)", "out.sum().backward()", "m.zero_grad()",
    "m = copy.deepcopy(m)", "m = pickle.loads(pickle.dumps(m))", "m.load_state_dict(copy.deepcopy(m.state_dict()))",
    "m.eval()", "m.requires_grad_(False)", "m[0].requires_grad_(False)", "m.to(float64)", "m.to(bfloat16)", "m.to(float32)",
    "m.state_dict()", "m[0].weight.data.mul_(2)", "m[0].weight = nn.Parameter(m[0].weight.detach() * 2)", "m[0].bias = None",
    "x = x.to(bfloat16).detach().requires_grad_()", "x = x.detach()", "x = x[:0]", "x = x[0]", "x = x[None]", "x = 100 * x.detach()",
    "with torch.no_grad(): out = m(x)", "with torch.autocast('cpu', dtype=torch.bfloat16): out = m(x)", "out = torch.func.vmap(m)(x)",
    "x = x.t().contiguous().t()", "out = m(m(x))", "m = m[:1]", "m = nn.Sequential(m, nn.ReLU())", "m = nn.Sequential(m, m)",
    "m[0].register_forward_hook(lambda module, args, out: out + 1)", "out = m(x.to(float64))", "out.retain_grad()",
    "torch.autograd.grad(out.sum(), x, create_graph=True)[0].square().sum().backward()", "m.append(nn.Linear(4, 2).to(x.dtype))",
    "torch.set_default_dtype(torch.double)", "m.weight_sum = sum(p.sum() for p in m.parameters())", "m = by_file(m)",
    "h = m[0](x)", "len(m), [n for n, _ in m.named_parameters()]", "out = m(x.expand(2, *x.shape))", "out.add_(1)", "x = x.detach().half()",
]  # fmt: skip


def layers(draw: Draw) -> list[str]:
    dtype, width = draw.pick(DTYPES), draw.pick(["3", "4", "1"])
    modules, before = [], width
    for _ in range(draw.randint(1, 3)):
        after = draw.pick(["4", "4", "4", "2", "1"])
        modules.append(f"nn.Linear({before}, {after}{draw.pick(['', '', ', bias=False'])})")
        if draw.randrange(5):
            modules.append(draw.pick(ACTIVATIONS) if draw.one_in(2) else draw.choice(ACTIVATIONS))
        before = after
    lines = [
        f"m = nn.Sequential({', '.join(modules)}).to({dtype})",
        f"x = {numbers(f'5, {width}', dtype, draw.pick(['', '3 * ', '30 * ']))}.requires_grad_()",
        "m = convert(m)" if draw.randrange(4) else "out = m(x)",
        "out = m(x)",
    ]
    if draw.one_in(2):
        lines.append(f"opt = {_optimizer(draw, 'm.parameters()')}")
        lines += [
            draw.choice(["opt.step()", draw.pick(MODULE_LINES)]) for _ in range(draw.randint(1, 6))
        ]
    return lines + [draw.pick(MODULE_LINES) for _ in range(draw.randint(1, 6))]


# -- optimizers -------------------------------------------------------------------------------

OPTIONS = {
    "SGD": ["momentum=0.9", "momentum=0.9", "momentum=0.5", "nesterov=True", "weight_decay=0.1", "dampening=0.3", "maximize=True", "foreach=True",
            "foreach=False", "differentiable=True"],
    "Adam": ["betas=(0.8, 0.9)", "weight_decay=0.1", "eps=1e-3", "amsgrad=True", "maximize=True", "foreach=True", "capturable=False",
             "fused=True", "decoupled_weight_decay=True", "lr=torch.tensor(0.05)", "betas=(0.0, 0.5)", "differentiable=True"],
    "AdamW": ["betas=(0.8, 0.9)", "weight_decay=0.1", "eps=1e-3", "amsgrad=True", "maximize=True", "foreach=False", "weight_decay=0",
              "fused=True", "eps=0", "lr=-1"],
}  # fmt: skip
GRADIENTS = "for p in P: p.grad = torch.randn(p.shape, dtype=torch.double, device='cpu').bfloat16().to(p.dtype)"
STEP_LINES = [
    "opt.step()", GRADIENTS, "opt.step()", "opt.zero_grad()", "opt.zero_grad(set_to_none=False)", "P[0].grad = None",
    "opt.step(closure)", "opt.load_state_dict(copy.deepcopy(opt.state_dict()))", "opt.load_state_dict(opt.state_dict())",
    "opt.load_state_dict(by_file(opt.state_dict()))", "opt, P = copy.deepcopy((opt, P))", "opt, P = pickle.loads(pickle.dumps((opt, P)))",
    "opt.param_groups[0]['lr'] = 0.5", "opt.param_groups[0]['weight_decay'] = 0.2", "opt.param_groups[0]['momentum'] = 0.5",
    "opt.param_groups[0]['lr'] = torch.tensor(0.25)", "opt.add_param_group({'params': Q, 'lr': 0.3}); P = P + Q", "opt.add_param_group({'params': P[0]})",
    "P[1].data = P[1].data.to(memory_format=torch.channels_last)", "P[0].data = P[0].data.t()", "P[0].data = P[0].data.double()",
    "for p in P: p.data = p.data.to(bfloat16)", "for p in P: p.data = p.data.to(float64)", "for p in P: p.data = p.data.to(float16)",
    "P[0].data = P[0].data[:1]", "P[0].data = torch.cat([P[0].data] * 2)", "P[0].data = P[0].data.clone()", "P[0].data = P[0].data[:, :1]",
    "P[0].requires_grad_(False)", "resize_(P[0].data, 2, 2)", "resize_(P[0].grad, 2, 2)", "P[0].grad = P[0].grad.t().contiguous().t()",
    "opt.state[P[0]]['step'] = 3", "opt.state[P[0]]['step'] = torch.tensor(3)", "opt.state[P[0]]['step'] = torch.tensor(3.0, dtype=torch.double)",
    "opt.state[P[0]]['exp_avg'] = torch.ones_like(P[0])", "opt.state[P[0]]['momentum_buffer'] = torch.ones_like(P[0])", "opt.state.clear()",
    "opt.state[P[0]] = {}", "opt.state.pop(P[0], None)", "opt.state[P[0]]['momentum_buffer'] = None", "opt.state[P[0]]['exp_avg'] = opt.state[P[0]]['exp_avg'].t().contiguous().t()",
    "opt.state[P[0]]['exp_avg_sq'] = opt.state[P[0]]['exp_avg_sq'].double()", "opt.state[P[0]]['exp_avg'] = opt.state[P[0]]['exp_avg'][:1]",
    "sched = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)", "sched.step()", "sched = torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, 5)",
    "sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda n: 0.9 ** n)", "sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 5)",
    "torch.set_default_dtype(torch.double)", "torch.set_default_device('meta')", "torch.set_default_dtype(torch.half)",
    "scaler = torch.amp.GradScaler('cpu', init_scale=4.0)", "scaler.scale(sum((p * p).sum() for p in P)).backward()", "scaler.unscale_(opt)",
    "scaler.step(opt)", "scaler.update()", "for p in P: p.grad.mul_(float('inf'))", "torch.nn.utils.clip_grad_norm_(P, 1.0)",
    "opt.register_step_post_hook(lambda o, a, k: log.append('post'))", "opt.register_step_pre_hook(lambda o, a, k: log.append('pre'))",
    "opt.register_state_dict_post_hook(lambda o, d: d)", "opt.register_load_state_dict_post_hook(lambda o: log.append('loaded'))",
    "other = {new}", "other.load_state_dict(opt.state_dict())", "opt, other = other, opt", "other.step()", "opt.load_state_dict(other.state_dict())",
    "there = {there}; there.load_state_dict(opt.state_dict()); there.step(); opt.load_state_dict(there.state_dict())", "repr(opt)", "opt.defaults",
    "sum((p * p).sum() for p in P).backward()", "with torch.inference_mode(): opt.step()", "P[0].grad = P[0].grad.to_sparse()", "P[0].grad = 0 * P[0].grad",
    "P[0].grad = torch.ones(1, dtype=P[0].dtype).expand_as(P[0])", "old = (P[0] ** 2).sum()", "old.backward()", "resize_(P[0].data, 10)",
    "resize_(opt.state[P[0]].get('exp_avg', P[0].data), 10)", "P[0].data = torch.zeros(6, 2, dtype=P[0].dtype)[::2]", "P[0].grad = P[0].grad.double()",
    "opt.param_groups[0]['params'] = P[:1]", "opt.param_groups.pop()", "P[0].data.mul_(float('nan'))",
    "opt.param_groups[0]['betas'] = (0.5, 0.6)", "opt.param_groups[0]['eps'] = 1e-2", "opt.param_groups[0]['nesterov'] = True", "opt.param_groups[0]['amsgrad'] = True",
    "opt.__class__.__name__", "isinstance(opt, torch.optim.Optimizer)", "step = opt.step", "step()", "P[0] = nn.Parameter(P[0].detach() + 1)", "P[0].grad_dtype = None",
]  # fmt: skip


UNLIKE = re.compile(r"\.data = |resize_|opt\.state\[P\[0\]\]\['|\.grad = P\[0\]\.grad\.|expand_as")


def _optimizer(draw: Draw, of: str) -> str:
    name = draw.choice(["SGD", "Adam", "AdamW"])
    given = draw.sample(OPTIONS[name], draw.choice([0, 0, 1, 1, 2, 3]))
    if "nesterov=True" in given and not any("momentum" in option for option in given):
        given.append("momentum=0.9")
    options = {option.split("=")[0]: option for option in ["lr=0.1", *given]}
    return f"optim.{name}({of}, {', '.join(options.values())})"


def optimizers(draw: Draw) -> list[str]:
    dtype = draw.pick(DTYPES)
    shapes = [
        "3, 2",
        draw.choice(["2, 3, 2, 2", "2, 3, 2, 2", "4", "5000"]),
        *draw.sample(["", "0", "1", "7", "1, 1, 1, 1"], draw.randrange(3)),
    ]
    made = ", ".join(f"nn.Parameter({numbers(shape or '()', dtype)})" for shape in shapes)
    of = draw.pick(["P", "P", "P", "[{'params': P[:1], 'lr': 0.3}, {'params': P[1:]}]",
                    "[{'params': P[1:], 'weight_decay': 0.3}]", "[('a', P[0]), ('b', P[1])]"])  # fmt: skip
    new = _optimizer(draw, of)
    lines = [
        f"P = [{made}]",
        f"Q = [nn.Parameter({numbers('2, 2', dtype)})]; log = []",
        "def closure(): opt.zero_grad(); s = sum((p * p).sum() for p in P); s.backward(); return s",
        f"opt = {new}",
    ]
    if draw.one_in(3):
        lines[1] += (
            "; P[1].data = P[1].data.to(memory_format=torch.channels_last) if P[1].dim() == 4 else P[1].data"
        )
    if draw.one_in(10):
        lines.insert(
            0,
            draw.choice(
                ["torch.set_default_dtype(torch.double)", "torch.set_default_device('meta')"]
            ),
        )
    for _ in range(draw.randint(1, 4)):
        lines += [GRADIENTS, "opt.step()"]
        for _ in range(draw.randrange(4)):
            line = draw.choice(STEP_LINES)
            lines.append(
                line.replace("{new}", _optimizer(draw, of)).replace("{there}", "torch." + new)
            )
    if "fused=True" in " ".join(lines):  # PyTorch's own fused kernels write past such tensors
        lines = [line for line in lines if not UNLIKE.search(line)]
    return lines
