//! The bulk copy engine: tiles of tensor maps. Loads happen when nothing else can run, stores at the wait that covers them.

use super::super::fault::{FaultKind, Problem, at, problem};
use super::super::memory::{PARAM_WINDOW, allocation_base};
use super::super::op::*;
use super::super::shared::Access;
use super::super::tensor_map::TensorMap;
use super::super::warp::{NONE, TileStore, Warp};
use super::Block;
use super::space::resolve;

/// A load that has not happened yet.
pub(super) struct Bulk {
    pub warp: usize,
    pub lane: u32,
    pub line: u32,
    map: u32,
    coordinates: [i32; 5],
    to: u32,
    barrier: u32,
    /// The same bytes went to another block, and are counted there.
    again: bool,
}

/// The rows of a tile: for each, the offset in the tile, the index of its first element on the other axes, and whether it exists.
fn rows(map: &TensorMap, coordinates: &[i32; 5]) -> Vec<(u32, Option<u64>)> {
    let n = map.tile.len();
    let count: u32 = map.tile[1..].iter().product();
    (0..count)
        .map(|r| {
            let (mut rest, mut offset, mut inside) = (r, 0u64, true);
            for a in 1..n {
                let i = coordinates[a] as i64 + (rest % map.tile[a]) as i64;
                rest /= map.tile[a];
                inside &= i >= 0 && (i as u64) < map.sizes[a];
                if inside {
                    offset += i as u64 * map.strides[a - 1];
                }
            }
            (r * map.tile[0] * map.element, inside.then_some(offset))
        })
        .collect()
}

impl Block<'_> {
    fn map_at(&self, address: u64) -> Result<u32, Problem> {
        let at = address.wrapping_sub(PARAM_WINDOW);
        match self.launch.maps.get(&(at as u32)) {
            Some(_) if at < 1 << 32 => Ok(at as u32),
            _ => problem(FaultKind::Undefined, format!("there is no tensor map at {address:#x}")),
        }
    }

    /// A place in the warp's own block.
    fn shared_at(&self, warp: usize, memory: Memory, address: u64, align: u64, bytes: u64) -> Result<u32, Problem> {
        let (m, a) = resolve(memory, address);
        if m != Memory::Shared {
            return problem(FaultKind::OutOfBounds, "tiles are in shared memory");
        }
        if a % align != 0 {
            return problem(FaultKind::Misaligned, format!("shared address {a:#x} is no multiple of {align} bytes"));
        }
        let place = self.shared.range(a, bytes as usize)?;
        self.own(warp, place).map(|_| place as u32)
    }

    pub(super) fn tensor(&mut self, w: &mut Warp, pc: u32, op: Op, mask: u32) -> Result<(), Problem> {
        let k = self.launch.kernel;
        let line = k.code[pc as usize].line;
        match op {
            Op::TensorLoad { dims, to, to_memory, map, coordinates, barrier, barrier_memory, blocks } => {
                let blocks = if blocks == NONE { None } else { Some(*w.get(k, blocks, mask)?) };
                let (to, maps, barriers) = (self.addresses(w, to, mask)?, self.addresses(w, map, mask)?, self.addresses(w, barrier, mask)?);
                for l in (0..32).filter(|l| mask >> l & 1 != 0) {
                    let c = self.coordinates(w, coordinates, l)?;
                    let r = self.issue_load(w.index, dims, c[0], (to_memory, to[l]), maps[l], (barrier_memory, barriers[l]), blocks.map(|b| b[l]));
                    let (map, places) = at(r, l as u32, || self.describe(to_memory, to[l]))?;
                    for (i, (to, barrier)) in places.into_iter().enumerate() {
                        self.bulk.push_back(Bulk { warp: w.index, lane: l as u32, line, map, coordinates: c, to, barrier, again: i > 0 });
                    }
                }
            }
            Op::TensorStore { dims, map, coordinates, from, from_memory } => {
                let (from, maps) = (self.addresses(w, from, mask)?, self.addresses(w, map, mask)?);
                for l in (0..32).filter(|l| mask >> l & 1 != 0) {
                    let c = self.coordinates(w, coordinates, l)?;
                    let r = self.issue_store(w.index, dims, maps[l], from_memory, from[l]);
                    let (map, from) = at(r, l as u32, || self.describe(from_memory, from[l]))?;
                    w.stores.push(TileStore { lane: l as u32, map: map as usize, coordinates: c, from, group: NONE, line });
                }
            }
            Op::BulkCommit => {
                for s in w.stores.iter_mut().filter(|s| mask >> s.lane & 1 != 0 && s.group == NONE) {
                    s.group = w.store_groups[s.lane as usize];
                }
                for l in 0..32 {
                    w.store_groups[l] += mask >> l & 1;
                }
            }
            Op::BulkWait { left, .. } => {
                let mut rest = vec![];
                for s in std::mem::take(&mut w.stores) {
                    if mask >> s.lane & 1 != 0 && s.group != NONE && (s.group as u64 + left as u64) < w.store_groups[s.lane as usize] as u64 {
                        let r = self.store_tile(w.index, &s);
                        at(r, s.lane, || self.shared.describe_place(s.from as usize))?;
                    } else {
                        rest.push(s);
                    }
                }
                w.stores = rest;
                // The engine's reads are over for this thread.
                let engine = self.engine();
                self.shared.clocks[w.index][engine] = self.shared.stamp;
                self.shared.stamp += 1;
            }
            _ => return problem(FaultKind::Undefined, "an instruction of another class"),
        }
        Ok(())
    }

    fn coordinates(&self, w: &Warp, slots: Slots, lane: usize) -> Result<[i32; 5], Problem> {
        let k = self.launch.kernel;
        let mut c = [0; 5];
        for (c, s) in c.iter_mut().zip(k.slots(slots)) {
            *c = w.get(k, *s, 1 << lane)?[lane] as i32;
        }
        Ok(c)
    }

    /// The map, and where in each block the tile goes and the barrier object is; without `blocks`, in the warp's own.
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn issue_load(&mut self, warp: usize, dims: u8, inner: i32, to: (Memory, u64), map: u64, barrier: (Memory, u64), blocks: Option<u32>) -> Result<(u32, Vec<(u32, u32)>), Problem> {
        let at = self.map_at(map)?;
        let m = &self.launch.maps[&at].0;
        if m.sizes.len() != dims as usize {
            return problem(FaultKind::Undefined, format!("the tensor map has {} axes, the instruction {dims}", m.sizes.len()));
        }
        // No rule of the ISA's text: an H100 says "illegal instruction" to a load that begins elsewhere.
        if i64::from(inner) * i64::from(m.element) % 16 != 0 {
            return problem(FaultKind::Misaligned, format!("a tile begins at element {inner} of the innermost axis, {} bytes from its start: no multiple of 16", i64::from(inner) * i64::from(m.element)));
        }
        let bytes = m.tile_bytes();
        let start = self.shared_at(warp, to.0, to.1, 128, bytes)?;
        let barrier = self.shared_at(warp, barrier.0, barrier.1, 8, 8)?;
        let blocks = blocks.unwrap_or(1 << self.rank(warp));
        if blocks == 0 || u64::from(blocks) >= 1 << self.at.len() {
            return problem(FaultKind::Undefined, format!("a copy to blocks {blocks:#b} of a cluster that has {}", self.at.len()));
        }
        let mut places = vec![];
        for b in (0..self.at.len()).filter(|b| blocks >> b & 1 != 0) {
            let (to, object) = (self.shared.in_block(start as usize, b), self.shared.in_block(barrier as usize, b));
            self.present(to)?;
            self.shared.access(warp, warp, object, 8, Access::Read)?;
            self.shared.access(warp, warp, to, bytes as usize, Access::Issue)?;
            places.push((to as u32, object as u32));
        }
        Ok((at, places))
    }

    /// A load happens.
    pub(super) fn complete(&mut self, b: Bulk) -> Result<(), Problem> {
        let (map, allocation) = &self.launch.maps[&b.map];
        let (map, base) = (map.clone(), allocation_base(*allocation));
        let (bytes, engine, linear) = (map.tile_bytes(), self.engine(), self.linear(b.warp));
        self.present(b.to as usize)?;
        self.shared.access(engine, b.warp, b.to as usize, bytes as usize, Access::Arrive)?;
        let mut element = [0u8; 8];
        for (offset, row) in rows(&map, &b.coordinates) {
            let mut any = 0u64;
            for i in 0..map.tile[0] {
                let x = b.coordinates[0] as i64 + i as i64;
                let data = &mut element[..map.element as usize];
                data.fill(0);
                if let Some(row) = row
                    && x >= 0
                    && (x as u64) < map.sizes[0]
                {
                    self.launch.global.read(base + row + x as u64 * map.element as u64, data, linear)?;
                    any += map.element as u64;
                }
                let place = map.swizzle.apply(b.to + offset + i * map.element) as usize;
                self.shared.fill(place, data);
            }
            if !b.again {
                self.stats.bytes(Memory::Global).loaded += any;
                self.stats.sectors += any.div_ceil(32);
                self.stats.sectors_ideal += any.div_ceil(32);
            }
        }
        self.stats.requests += u64::from(!b.again);
        self.stats.bytes(Memory::Shared).stored += bytes;
        let mut clock = vec![0; self.shared.clocks[0].len()];
        clock[engine] = self.shared.stamp;
        self.shared.stamp += 1;
        self.arrived(b.barrier, bytes, &clock)
    }

    fn issue_store(&mut self, warp: usize, dims: u8, map: u64, memory: Memory, from: u64) -> Result<(u32, u32), Problem> {
        let at = self.map_at(map)?;
        let m = &self.launch.maps[&at].0;
        if m.sizes.len() != dims as usize {
            return problem(FaultKind::Undefined, format!("the tensor map has {} axes, the instruction {dims}", m.sizes.len()));
        }
        let bytes = m.tile_bytes();
        let start = self.shared_at(warp, memory, from, 128, bytes)?;
        let engine = self.engine();
        self.shared.access(engine, warp, start as usize, bytes as usize, Access::ProxyRead)?;
        Ok((at, start))
    }

    fn store_tile(&mut self, warp: usize, s: &TileStore) -> Result<(), Problem> {
        let (map, allocation) = &self.launch.maps[&(s.map as u32)];
        let (map, base) = (map.clone(), allocation_base(*allocation));
        let (bytes, engine) = (map.tile_bytes(), self.engine());
        self.shared.access(engine, warp, s.from as usize, bytes as usize, Access::ProxyRead)?;
        for (offset, row) in rows(&map, &s.coordinates) {
            let Some(row) = row else { continue };
            for i in 0..map.tile[0] {
                let x = s.coordinates[0] as i64 + i as i64;
                if x >= 0 && (x as u64) < map.sizes[0] {
                    let place = map.swizzle.apply(s.from + offset + i * map.element) as usize;
                    let data = &self.shared.bytes[place..place + map.element as usize];
                    self.launch.global.write(base + row + x as u64 * map.element as u64, data, self.linear(warp))?;
                    self.stats.bytes(Memory::Global).stored += map.element as u64;
                }
            }
        }
        self.stats.bytes(Memory::Shared).loaded += bytes;
        Ok(())
    }
}
