//! A small loader of ELF x86-64 relocatable objects that refer to nothing outside of themselves. Bytes are not trusted: every
//! relocation is bounds-checked, and anything unknown is refused by name.

use ir::diagnostic::Error;
use object::elf::{R_X86_64_32S, R_X86_64_64, R_X86_64_PC32, R_X86_64_PLT32};
use object::{Architecture, Object as _, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionKind};
use std::collections::HashMap;

/// An object in executable memory.
#[derive(Debug)]
pub struct Object {
    base: *mut u8,
    len: usize,
    symbols: HashMap<String, usize>,
}

// SAFETY: the memory is written only while it is loaded, and then read and executed.
unsafe impl Send for Object {}
// SAFETY: as above.
unsafe impl Sync for Object {}

/// Sections beyond this are refused: a kernel is some kilobytes.
const LARGEST: usize = 64 << 20;

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(format!("object: {what}")).hint("the compiled kernel is damaged or made by another version; delete it and compile again")
}

impl Object {
    /// Maps, relocates and protects `bytes`.
    ///
    /// # Errors
    /// What is damaged, unknown or undefined.
    pub fn load(bytes: &[u8]) -> Result<Object, Error> {
        let file = object::File::parse(bytes).map_err(damaged)?;
        if file.architecture() != Architecture::X86_64 || file.kind() != object::ObjectKind::Relocatable {
            return Err(damaged(format!("is {:?} {:?}, not a relocatable object for x86-64", file.kind(), file.architecture())));
        }
        // Where each section that exists at run time goes.
        let mut places = HashMap::new();
        let mut end = 0usize;
        for s in file.sections() {
            let kept = matches!(s.kind(), SectionKind::Text | SectionKind::ReadOnlyData | SectionKind::ReadOnlyDataWithRel | SectionKind::ReadOnlyString | SectionKind::Data);
            if !kept || s.size() == 0 {
                continue;
            }
            let (size, align) = (usize::try_from(s.size()).unwrap_or(usize::MAX), usize::try_from(s.align()).unwrap_or(0).clamp(1, 4096));
            if size > LARGEST || !align.is_power_of_two() {
                return Err(damaged(format!("section {} has {size} bytes aligned to {align}", s.name().unwrap_or("?"))));
            }
            end = end.next_multiple_of(align);
            places.insert(s.index(), end);
            end += size;
            if end > LARGEST {
                return Err(damaged(format!("has more than {LARGEST} bytes")));
            }
        }
        if end == 0 {
            return Err(damaged("has no code"));
        }
        let mut image = vec![0u8; end];
        for s in file.sections() {
            let Some(at) = places.get(&s.index()) else { continue };
            let data = s.data().map_err(damaged)?;
            image.get_mut(*at..*at + data.len()).ok_or_else(|| damaged("section data is larger than the section"))?.copy_from_slice(data);
        }
        // SAFETY: a fresh private mapping of `end` bytes at no particular place.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), end, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::new(format!("object: cannot map {end} bytes: {}", std::io::Error::last_os_error())));
        }
        let mut loaded = Object { base: base.cast(), len: end, symbols: HashMap::new() };
        for s in file.sections() {
            let Some(at) = places.get(&s.index()) else { continue };
            for (offset, r) in s.relocations() {
                loaded.relocate(&file, &places, &mut image, *at, s.size(), offset, &r)?;
            }
        }
        // SAFETY: both are `end` bytes and do not overlap; then nothing writes there any more.
        let protected = unsafe {
            std::ptr::copy_nonoverlapping(image.as_ptr(), loaded.base, end);
            libc::mprotect(loaded.base.cast(), end, libc::PROT_READ | libc::PROT_EXEC)
        };
        if protected != 0 {
            return Err(Error::new(format!("object: cannot make code executable: {}", std::io::Error::last_os_error())));
        }
        for s in file.symbols().filter(|s| s.is_definition()) {
            if let (Some(place), Ok(name)) = (s.section_index().and_then(|i| places.get(&i)), s.name()) {
                let at = usize::try_from(s.address()).ok().and_then(|a| place.checked_add(a)).filter(|a| *a < end);
                loaded.symbols.insert(name.into(), at.ok_or_else(|| damaged(format!("symbol {name} lies outside of its section")))?);
            }
        }
        Ok(loaded)
    }
    #[allow(clippy::too_many_arguments)]
    fn relocate(
        &self,
        file: &object::File,
        places: &HashMap<object::SectionIndex, usize>,
        image: &mut [u8],
        section: usize,
        size: u64,
        offset: u64,
        r: &object::Relocation,
    ) -> Result<(), Error> {
        let RelocationFlags::Elf { r_type } = r.flags() else { return Err(damaged("a relocation that is not ELF's")) };
        let (name, target) = match r.target() {
            RelocationTarget::Symbol(i) => {
                let s = file.symbol_by_index(i).map_err(damaged)?;
                let name = s.name().unwrap_or("?").to_string();
                let place = s.section_index().and_then(|i| places.get(&i)).ok_or_else(|| damaged(format!("refers to `{name}`, which it does not define")))?;
                (name, (*place as i128) + i128::from(s.address()))
            }
            t => return Err(damaged(format!("a relocation against {t:?}"))),
        };
        let width = if r_type == R_X86_64_64 { 8 } else { 4 };
        if offset.checked_add(width).is_none_or(|e| e > size) {
            return Err(damaged(format!("a relocation against `{name}` lies outside of its section")));
        }
        let at = section + offset as usize;
        let value = target + i128::from(r.addend());
        if value < 0 || value > self.len as i128 + 64 {
            // PC-relative addends may point some bytes before a symbol, never far outside.
            if value < -64 || value > self.len as i128 + 64 {
                return Err(damaged(format!("a relocation against `{name}` points outside of the object")));
            }
        }
        let field = image.get_mut(at..at + width as usize).ok_or_else(|| damaged("a relocation outside of the image"))?;
        match r_type {
            R_X86_64_PC32 | R_X86_64_PLT32 => {
                let relative = i32::try_from(value - at as i128).map_err(|_| damaged(format!("`{name}` is too far away")))?;
                field.copy_from_slice(&relative.to_le_bytes());
            }
            R_X86_64_64 => field.copy_from_slice(&((self.base as usize as i128 + value) as u64).to_le_bytes()),
            R_X86_64_32S => return Err(damaged(format!("an absolute 32-bit reference to `{name}`: it was not compiled as position-independent code"))),
            other => return Err(damaged(format!("relocation type {other} against `{name}`, which this loader does not have"))),
        }
        Ok(())
    }
    /// The address of a symbol.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn symbol(&self, name: &str) -> Result<*const u8, Error> {
        let at = self.symbols.get(name).ok_or_else(|| damaged(format!("has no symbol `{name}`")))?;
        // SAFETY: `at` is inside of the mapping.
        Ok(unsafe { self.base.add(*at) })
    }
    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the mapping that `load` made, and nothing refers to it once the kernel is gone.
        unsafe { libc::munmap(self.base.cast(), self.len) };
    }
}
