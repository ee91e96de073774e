import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from oasisgen.config.data import OASIS
from oasisgen.data.phantom import subject
from oasisgen.training.features import WEIGHTS, PretextHeads, anatomy_of, augment, blur, pretext_losses


def test_each_slice_is_blurred_by_its_own_gaussian() -> None:
    x = torch.from_numpy(subject(0, 1)[[5, 20]]).float().unsqueeze(1)  # (2, 1, 256, 256)
    blurred = blur(x, torch.tensor([0.0, 1.5])).squeeze(1).numpy()
    assert np.allclose(blurred[0], x[0, 0].numpy())
    assert np.allclose(blurred[1], gaussian_filter(x[1, 0].numpy(), 1.5, truncate=4, mode="constant"), atol=0.05)


def test_half_of_what_is_seen_is_damaged_as_it_says() -> None:
    images = torch.from_numpy(subject(0, 1))  # (32, 256, 256)
    batch = augment(images, torch.Generator().manual_seed(0))
    damaged = batch.damage.abs().sum(1) > 0
    assert 8 < int(damaged.sum()) < 24
    clean = ((batch.x.squeeze(1) + 1) * 127.5).round().to(torch.uint8)
    for before, after, broken in zip(images, clean, damaged, strict=True):
        same = torch.equal(before.flatten().sort().values, after.flatten().sort().values)  # the same pixels, shifted
        assert same != bool(broken)
    again = augment(images, torch.Generator().manual_seed(0))
    assert torch.equal(batch.x, again.x)


def test_shares_of_tissue_add_up_to_one() -> None:
    anatomy = anatomy_of(torch.from_numpy(subject(0, 1)[:4]).float().unsqueeze(1) / 255)
    assert torch.allclose(anatomy[:, :5].sum(1), torch.ones(4, 8, 8))
    assert float(anatomy[:, 5].max()) > 0.05


def test_the_network_learns_levels_and_damage_of_people_it_has_not_seen() -> None:
    torch.manual_seed(0)
    people = torch.from_numpy(np.concatenate([subject(0, number) for number in range(1, 7)]))
    levels = torch.arange(32).repeat(6)
    model = PretextHeads(OASIS)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    random = torch.Generator().manual_seed(0)
    for _ in range(90):
        rows = torch.randint(0, len(people), (16,), generator=random)
        batch = augment(people[rows], random)
        predicted: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = model(batch.x)
        losses = pretext_losses(*predicted, levels[rows], batch)
        optimizer.zero_grad()
        (losses @ losses.new_tensor(WEIGHTS)).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        batch = augment(torch.from_numpy(subject(0, 99)), random)
        level, damage, _ = model(batch.x)
    assert float((level.argmax(1) - torch.arange(32)).abs().float().mean()) < 6  # by chance: 11
    assert np.corrcoef(damage[:, 1].numpy(), batch.damage[:, 1].numpy())[0, 1] > 0.5
