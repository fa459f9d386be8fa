//! Curves as PNG, drawn by plotters. Letters are pictures from a table (Noto Sans Mono), so that no font has to be installed and every machine draws the same pixels.

use crate::picture;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use plotters::prelude::*;
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingErrorKind};
use plotters_backend::text_anchor::{HPos, VPos};

/// One curve.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// Points in order of x; not-finite ones are left out.
    pub points: Vec<(f64, f64)>,
    /// Half the length of a bar in x and in y at each point; may be shorter than the points.
    pub bars: Vec<(f64, f64)>,
    /// Written beside each point; may be shorter than the points.
    pub marks: Vec<String>,
}

/// What is on the axes.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// Above everything.
    pub title: String,
    /// Of the horizontal axis.
    pub x: String,
    /// Of the vertical axis.
    pub y: String,
}

/// Colours that people with any colour vision tell apart (Okabe & Ito 2008), and black.
const COLOURS: [RGBColor; 8] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167), RGBColor(230, 159, 0), RGBColor(86, 180, 233), RGBColor(90, 90, 90), RGBColor(0, 0, 0)];

/// Curves as a PNG file of `width × height` pixels.
///
/// # Errors
/// No finite point, or what the plotting library refuses.
pub fn plot(frame: &Frame, curves: &[Curve], (width, height): (usize, usize)) -> Result<Vec<u8>, String> {
    let finite = |c: &Curve| -> Vec<(f64, f64)> { c.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect() };
    let (x, y) = (range(curves.iter().flat_map(|c| reach(c, |p| p.0, |b| b.0))), range(curves.iter().flat_map(|c| reach(c, |p| p.1, |b| b.1))));
    let (Some(x), Some(y)) = (x, y) else { return Err(format!("plot `{}`: there is no point", frame.title)) };
    let mut pixels = vec![255u8; width * height * 3];
    {
        let back = Lettered(BitMapBackend::with_buffer(&mut pixels, (width as u32, height as u32)));
        let root = back.into_drawing_area();
        let said = |e: &dyn std::fmt::Display| format!("plot `{}`: {e}", frame.title);
        root.fill(&WHITE).map_err(|e| said(&e))?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&frame.title, ("mono", 20))
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)
            .map_err(|e| said(&e))?;
        let letters = ("mono", 16);
        let digits = |v: &f64| format!("{}", (v * 1e6).round() / 1e6);
        chart.configure_mesh().x_desc(&frame.x).y_desc(&frame.y).label_style(letters).axis_desc_style(letters).light_line_style(RGBColor(240, 240, 240)).x_label_formatter(&digits).y_label_formatter(&digits).draw().map_err(|e| said(&e))?;
        for (i, c) in curves.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let points = finite(c);
            let few = points.len() <= 40;
            let series = chart.draw_series(LineSeries::new(points.iter().copied(), ShapeStyle::from(&colour).stroke_width(2))).map_err(|e| said(&e))?;
            if curves.len() > 1 || !c.name.is_empty() {
                series.label(&c.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], ShapeStyle::from(&colour).stroke_width(3)));
            }
            if few {
                chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled()))).map_err(|e| said(&e))?;
            }
            let bars = c.points.iter().zip(&c.bars).filter(|(p, b)| [p.0, p.1, b.0, b.1].iter().all(|v| v.is_finite()));
            let lines = bars.flat_map(|(p, b)| [[(p.0 - b.0, p.1), (p.0 + b.0, p.1)], [(p.0, p.1 - b.1), (p.0, p.1 + b.1)]]);
            chart.draw_series(lines.map(|l| PathElement::new(l, colour.mix(0.6)))).map_err(|e| said(&e))?;
            let marks = c.points.iter().zip(&c.marks).filter(|(p, _)| p.0.is_finite() && p.1.is_finite());
            chart.draw_series(marks.map(|(p, m)| EmptyElement::at(*p) + Text::new(m.clone(), (6, -18), ("mono", 16).into_font().color(&colour)))).map_err(|e| said(&e))?;
        }
        if curves.len() > 1 {
            chart.configure_series_labels().border_style(RGBColor(200, 200, 200)).background_style(WHITE.mix(0.85)).label_font(letters).position(SeriesLabelPosition::UpperRight).draw().map_err(|e| said(&e))?;
        }
        root.present().map_err(|e| said(&e))?;
    }
    picture::png(width, height, png::ColorType::Rgb, &pixels)
}

/// The ends of what a curve covers on one axis, bars included.
fn reach<'a>(c: &'a Curve, of: impl Fn(&(f64, f64)) -> f64 + 'a, bar: impl Fn(&(f64, f64)) -> f64 + 'a) -> impl Iterator<Item = f64> + 'a {
    c.points.iter().enumerate().flat_map(move |(i, p)| {
        let b = c.bars.get(i).map_or(0.0, &bar);
        [of(p) - b, of(p) + b]
    })
}

/// The range of finite numbers with a margin of 4 %, never empty.
fn range(xs: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (a, b) = xs.filter(|x| x.is_finite()).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    if a > b {
        return None;
    }
    let margin = if b > a { 0.04 * (b - a) } else { (0.1 * a.abs()).max(1e-3) };
    Some((a - margin, b + margin))
}

/// The bitmap backend, with letters from the table.
struct Lettered<'a>(BitMapBackend<'a>);

fn raster(size: f64) -> RasterHeight {
    if size < 19.0 { RasterHeight::Size16 } else { RasterHeight::Size20 }
}

impl DrawingBackend for Lettered<'_> {
    type ErrorType = <BitMapBackend<'static> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }
    fn ensure_prepared(&mut self) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.0.ensure_prepared()
    }
    fn present(&mut self) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.0.present()
    }
    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.0.draw_pixel(point, color)
    }
    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.0.draw_line(from, to, style)
    }
    fn draw_rect<S: BackendStyle>(&mut self, a: BackendCoord, b: BackendCoord, style: &S, fill: bool) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        self.0.draw_rect(a, b, style, fill)
    }
    fn estimate_text_size<S: BackendTextStyle>(&self, text: &str, style: &S) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let size = raster(style.size());
        Ok(((text.chars().count() * get_raster_width(FontWeight::Regular, size)) as u32, size.val() as u32))
    }
    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Result<(), DrawingErrorKind<Self::ErrorType>> {
        let size = raster(style.size());
        let step = get_raster_width(FontWeight::Regular, size) as i32;
        let (w, h) = (step * text.chars().count() as i32, size.val() as i32);
        // Where the text's box begins, before it is turned around `at`.
        let dx = match style.anchor().h_pos {
            HPos::Left => 0,
            HPos::Center => -w / 2,
            HPos::Right => -w,
        };
        let dy = match style.anchor().v_pos {
            VPos::Top => 0,
            VPos::Center => -h / 2,
            VPos::Bottom => -h,
        };
        let color = style.color();
        let turn = style.transform();
        for (i, c) in text.chars().enumerate() {
            let Some(r) = get_raster(c, FontWeight::Regular, size).or_else(|| get_raster('?', FontWeight::Regular, size)) else { continue };
            for (y, row) in r.raster().iter().enumerate() {
                for (x, v) in row.iter().enumerate().filter(|(_, v)| **v > 0) {
                    let (tx, ty) = turn.transform(dx + i as i32 * step + x as i32, dy + y as i32);
                    let (px, py) = (at.0 + tx, at.1 + ty);
                    let (width, height) = self.get_size();
                    if px >= 0 && py >= 0 && (px as u32) < width && (py as u32) < height {
                        self.0.draw_pixel((px, py), BackendColor { alpha: color.alpha * f64::from(*v) / 255.0, rgb: color.rgb })?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_a_picture_and_the_same_every_time() {
        let curve = Curve { name: "loss".into(), points: (0..20).map(|i| (f64::from(i), 1.0 / f64::from(i))).collect(), bars: vec![(0.0, 0.1); 20], marks: vec!["a".into(), "b".into()] };
        let frame = Frame { title: "loss over iterations".into(), x: "iteration".into(), y: "loss".into() };
        let curves = [curve.clone(), Curve { name: "other".into(), points: vec![(3.0, 0.5)], ..Curve::default() }];
        let a = plot(&frame, &curves, (640, 400)).unwrap();
        assert_eq!(a, plot(&frame, &curves, (640, 400)).unwrap());
        let mut r = png::Decoder::new(std::io::Cursor::new(&a)).read_info().unwrap();
        let mut pixels = vec![0; r.output_buffer_size().unwrap()];
        r.next_frame(&mut pixels).unwrap();
        // Something of each colour, and letters.
        for c in [COLOURS[0], COLOURS[1], RGBColor(0, 0, 0)] {
            assert!(pixels.chunks(3).filter(|p| **p == [c.0, c.1, c.2]).count() > 5, "{c:?}");
        }
        assert!(plot(&frame, &[Curve { points: vec![(f64::NAN, 0.0)], ..Curve::default() }], (100, 100)).unwrap_err().contains("no point"));
    }
}
