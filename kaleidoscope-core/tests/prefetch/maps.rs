//! Color maps of every shape, from a recipe.

use kaleidoscope_core::addr::Gfn;
use kaleidoscope_core::color::{
    Color, ColorMap, Frame, FrameKind, KernelIdentity, Order, Region, RegionId, Temperature,
};
use kaleidoscope_core::memory::MemoryLayout;
use kaleidoscope_mock::Rng;

/// Parameters of a map. The rest is drawn from the seed.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// RAM: frames of a hole, and frames of RAM after it.
    pub(crate) ram: Vec<(u8, u8)>,
    /// Number of regions.
    pub(crate) regions: u8,
    /// Amount of free RAM: none at 0, all from 100 on.
    pub(crate) free_percent: u8,
    /// Most consecutive frames with equal properties.
    pub(crate) run: u8,
    pub(crate) seed: u64,
}

/// Builds the map of a recipe.
pub(crate) fn map(recipe: &Recipe) -> ColorMap {
    let mut rng = Rng::new(recipe.seed);
    let (mut ram, mut next) = (Vec::new(), 0_u64);
    for &(hole, frames) in &recipe.ram {
        let (start, frames) = (next + u64::from(hole), u64::from(frames.max(1)));
        ram.push((Gfn(start).gpa(), frames << 12));
        next = start + frames;
    }
    let layout = MemoryLayout::new(&ram).expect("the regions are in order and small");
    let regions: Vec<_> = (0..recipe.regions)
        .map(|_| {
            let kind = FrameKind::ALL[rng.index(FrameKind::ALL.len())];
            Region::new(kind, Order::ALL[rng.index(Order::ALL.len())], "")
        })
        .collect();
    let mut frames = Vec::new();
    while frames.len() < layout.frames() as usize {
        let run = 1 + rng.below(u64::from(recipe.run.max(1)));
        let first = like(recipe, &regions, &mut rng);
        let step = rng.below(3);
        for number in 0..run {
            let position = first.position.wrapping_add(number * step);
            let bits = u8::try_from(rng.below(64)).expect("it is below 64");
            let temperature = Temperature::from_bits(bits).expect("there are six hints");
            frames.push(Frame { position, temperature, ..first });
        }
    }
    frames.truncate(layout.frames() as usize);
    let map = ColorMap::new(layout, KernelIdentity::default(), frames, regions);
    map.expect("kinds are those of the regions")
}

/// The common properties of a run of frames.
fn like(recipe: &Recipe, regions: &[Region], rng: &mut Rng) -> Frame {
    let is_free = rng.below(100) < u64::from(recipe.free_percent);
    let color = loop {
        let color = Color::ALL[rng.index(Color::ALL.len())];
        if matches!(color, Color::Free | Color::Offline) == is_free {
            break color;
        }
    };
    let region = (!regions.is_empty() && rng.below(4) > 0).then(|| rng.index(regions.len()));
    let kind = region.map_or(FrameKind::Unknown, |region| regions[region].kind);
    // Positions repeat, decrease and reach the largest number.
    let position = if rng.one_in(8) { u64::MAX - rng.below(9) } else { rng.below(200) };
    let region = region.map(|r| RegionId(u32::try_from(r).expect("regions are few")));
    Frame { kind, color, region, position, ..Frame::default() }
}
