//! Pictures: grids of samples as grey PNG.

/// A grey picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Rows from the top; 0 is black.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture of one grey value.
    pub fn plain(width: usize, height: usize, grey: u8) -> Picture {
        Picture { width, height, pixels: vec![grey; width * height] }
    }
    /// Draws `other` with its corner at `(x, y)`; what lies outside is left out.
    pub fn draw(&mut self, other: &Picture, x: usize, y: usize) {
        for row in 0..other.height.min(self.height.saturating_sub(y)) {
            let n = other.width.min(self.width.saturating_sub(x));
            self.pixels[(y + row) * self.width + x..][..n].copy_from_slice(&other.pixels[row * other.width..][..n]);
        }
    }
    /// Each pixel as a square of `zoom` pixels.
    pub fn zoomed(&self, zoom: usize) -> Picture {
        let mut p = Picture::plain(self.width * zoom, self.height * zoom, 0);
        for y in 0..p.height {
            for x in 0..p.width {
                p.pixels[y * p.width + x] = self.pixels[y / zoom * self.width + x / zoom];
            }
        }
        p
    }
    /// Pictures of one size in rows of `columns`, one pixel of grey between them.
    pub fn grid(pictures: &[Picture], columns: usize) -> Picture {
        let (w, h) = pictures.first().map_or((0, 0), |p| (p.width, p.height));
        let columns = columns.clamp(1, pictures.len().max(1));
        let rows = pictures.len().div_ceil(columns);
        let mut all = Picture::plain(columns * (w + 1) + 1, rows * (h + 1) + 1, 96);
        for (i, p) in pictures.iter().enumerate() {
            all.draw(p, i % columns * (w + 1) + 1, i / columns * (h + 1) + 1);
        }
        all
    }
    /// As a PNG file; the same pixels give the same bytes.
    ///
    /// # Errors
    /// A picture without pixels.
    pub fn png(&self) -> Result<Vec<u8>, String> {
        png(self.width, self.height, png::ColorType::Grayscale, &self.pixels)
    }
}

/// A PNG file of 8-bit channels.
///
/// # Errors
/// Sizes that do not agree with the bytes, or are 0.
pub fn png(width: usize, height: usize, color: png::ColorType, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = vec![];
    let mut e = png::Encoder::new(&mut out, width as u32, height as u32);
    e.set_color(color);
    e.set_depth(png::BitDepth::Eight);
    let said = |e: png::EncodingError| format!("picture of {width} x {height}: {e}");
    let mut w = e.write_header().map_err(said)?;
    w.write_image_data(bytes).map_err(said)?;
    w.finish().map_err(said)?;
    Ok(out)
}

/// The frames of one sample, side by side: `[channels, height, width]` or `[channels, frames, height, width]`; several channels stand below each other.
///
/// # Errors
/// A sample that has neither three nor four axes.
pub fn frames(grey: &[u8], shape: &[usize]) -> Result<Picture, String> {
    let (channels, frames, height, width) = match *shape {
        [c, h, w] => (c, 1, h, w),
        [c, t, h, w] => (c, t, h, w),
        _ => return Err(format!("picture: samples of shape {shape:?} are neither images [channels, height, width] nor clips [channels, frames, height, width]")),
    };
    let mut p = Picture::plain(frames * width, channels * height, 0);
    for (i, plane) in grey.chunks(height * width).enumerate() {
        p.draw(&Picture { width, height, pixels: plane.to_vec() }, i % frames * width, i / frames * height);
    }
    Ok(p)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut r = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut out = vec![0; r.output_buffer_size().unwrap()];
        let info = r.next_frame(&mut out).unwrap();
        (info.width, info.height, out)
    }

    #[test]
    fn a_grid_in_pixels() {
        let one = |v| Picture::plain(2, 1, v);
        let g = Picture::grid(&[one(1), one(2), one(3)], 2);
        assert_eq!((g.width, g.height), (7, 5));
        #[rustfmt::skip]
        assert_eq!(g.pixels, [
            96, 96, 96, 96, 96, 96, 96,
            96,  1,  1, 96,  2,  2, 96,
            96, 96, 96, 96, 96, 96, 96,
            96,  3,  3, 96, 96, 96, 96,
            96, 96, 96, 96, 96, 96, 96,
        ]);
        let z = g.zoomed(3);
        assert_eq!((z.width, z.pixels[4 * z.width + 3]), (21, 1));
        assert_eq!(decode(&z.png().unwrap()), (21, 15, z.pixels.clone()));
        assert_eq!(z.png().unwrap(), z.png().unwrap());
        assert!(Picture::plain(0, 0, 0).png().is_err());
    }

    #[test]
    fn frames_stand_side_by_side_and_channels_below() {
        let p = frames(&[1, 2, 3, 4], &[2, 2, 1, 1]).unwrap();
        assert_eq!((p.width, p.height, p.pixels), (2, 2, vec![1, 2, 3, 4]));
        assert_eq!(frames(&[1, 2], &[1, 1, 2]).unwrap().pixels, [1, 2]);
        assert!(frames(&[1], &[1]).unwrap_err().contains("neither images"));
    }
}
