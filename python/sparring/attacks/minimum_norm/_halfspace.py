import torch


def project_halfspace_box(w, b, x, norm, bounds=(0.0, 1.0)):
    W = w.flatten(1).double()
    lo = (bounds[0] - x).flatten(1).double()
    hi = (bounds[1] - x).flatten(1).double()
    b = b.double().clamp(min=0)
    room = torch.where(W > 0, hi, torch.where(W < 0, -lo, 0.0)).clamp(min=0)
    a = W.abs()
    if norm == "L1":
        s, i = a.sort(1, descending=True)
        r = room.gather(1, i)
        gain = s * r
        c = gain.cumsum(1)
        before = c - gain
        use = torch.where(c <= b[:, None], r, ((b[:, None] - before).clamp(min=0) / s.clamp(min=1e-300)).minimum(r))
        out = torch.zeros_like(W).scatter_(1, i, use) * W.sign()
        return out.to(w.dtype).reshape(w.shape)
    wt = a if norm == "L2" else torch.ones_like(a)  # |v| grows as t*wt
    t = torch.where(a > 0, room / wt, 0.0)
    slope = torch.where(room > 0, a * wt, 0.0)
    s, i = t.sort(1)
    sl = slope.gather(1, i)
    cap = (s * sl).cumsum(1)
    rest = slope.sum(1, keepdim=True) - sl.cumsum(1)
    val = cap + rest * s
    j = (val < b[:, None]).sum(1, keepdim=True)
    c0 = torch.where(j > 0, cap.gather(1, (j - 1).clamp(min=0)), 0.0)
    r0 = torch.where(j > 0, rest.gather(1, (j - 1).clamp(min=0)), slope.sum(1, keepdim=True))
    lam = (b[:, None] - c0) / r0.clamp(min=1e-300)
    v = (lam * wt).minimum(room) * W.sign()
    return v.to(w.dtype).reshape(w.shape)
