//! Peak memory of this process, for tests and reports (Linux), and an allocator for programs that own tensors.

use std::alloc::{GlobalAlloc, Layout, System};

/// The system's allocator, but blocks of a page or more start on a cache line: vectors of a row then do not cross lines, as all of them
/// do where a block starts 16 bytes behind one.
pub struct Lines;

fn lines(l: Layout) -> Layout {
    if l.size() < 4096 { l } else { Layout::from_size_align(l.size(), l.align().max(64)).unwrap_or(l) }
}

// SAFETY: every call is the system's, for one block always with the same layout, which asks for no less than the caller.
unsafe impl GlobalAlloc for Lines {
    unsafe fn alloc(&self, l: Layout) -> *mut u8 {
        // SAFETY: the caller's layout has a size.
        unsafe { System.alloc(lines(l)) }
    }
    unsafe fn alloc_zeroed(&self, l: Layout) -> *mut u8 {
        // SAFETY: the caller's layout has a size.
        unsafe { System.alloc_zeroed(lines(l)) }
    }
    unsafe fn dealloc(&self, p: *mut u8, l: Layout) {
        // SAFETY: from `alloc` with this layout.
        unsafe { System.dealloc(p, lines(l)) }
    }
    unsafe fn realloc(&self, p: *mut u8, l: Layout, size: usize) -> *mut u8 {
        let same = Layout::from_size_align(size, l.align()).is_ok_and(|n| lines(n).align() == lines(l).align());
        if same {
            // SAFETY: from `alloc` with this layout; the new size has the same alignment.
            return unsafe { System.realloc(p, lines(l), size) };
        }
        // SAFETY: as above; sizes are the caller's, who promises that they are valid with this alignment.
        unsafe {
            let q = self.alloc(Layout::from_size_align_unchecked(size, l.align()));
            if !q.is_null() {
                std::ptr::copy_nonoverlapping(p, q, l.size().min(size));
                self.dealloc(p, l);
            }
            q
        }
    }
}

/// Forgets the peak so far. Does nothing where the system has no such file.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident bytes since the start or the last [`reset_peak`]; `None` where the system does not say.
pub fn peak() -> Option<usize> {
    field("VmHWM:")
}

/// Resident bytes now.
pub fn resident() -> Option<usize> {
    field("VmRSS:")
}

fn field(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kb| kb * 1024)
}
