//! A picture in memory with rectangles and text, written as PNG.

use super::palette::{BACKGROUND, Rgb};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use std::io::{self, BufWriter, Write};

/// A font by size and weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Font {
    pub(crate) height: RasterHeight,
    pub(crate) weight: FontWeight,
}

impl Font {
    /// Width of a text in pixels.
    pub(crate) fn width(self, text: &str) -> usize {
        text.chars().count() * get_raster_width(self.weight, self.height)
    }
}

/// A picture of 8-bit RGB pixels.
#[derive(Debug)]
pub(crate) struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Rgb>,
}

impl Canvas {
    /// An empty picture.
    pub(crate) fn new(width: usize, height: usize) -> Self {
        Self { width, height, pixels: vec![BACKGROUND; width * height] }
    }

    /// The pixel at a position, or `None` outside.
    fn pixel(&mut self, x: usize, y: usize) -> Option<&mut Rgb> {
        self.pixels.get_mut(y * self.width + x).filter(|_| x < self.width)
    }

    /// Fills a rectangle; parts outside are cut off.
    pub(crate) fn fill(&mut self, x: usize, y: usize, width: usize, height: usize, color: Rgb) {
        for row in y..y + height {
            for column in x..x + width {
                if let Some(pixel) = self.pixel(column, row) {
                    *pixel = color;
                }
            }
        }
    }

    /// Draws a line of text with its upper left corner at (`x`, `y`). Letters that the font lacks
    /// become question marks.
    pub(crate) fn text(&mut self, x: usize, y: usize, font: Font, color: Rgb, text: &str) {
        let width = get_raster_width(font.weight, font.height);
        for (at, letter) in text.chars().enumerate() {
            let raster = get_raster(letter, font.weight, font.height)
                .or_else(|| get_raster('?', font.weight, font.height));
            let Some(raster) = raster else { continue };
            for (row, line) in raster.rows().enumerate() {
                for (column, &coverage) in line.iter().enumerate() {
                    if let Some(pixel) = self.pixel(x + at * width + column, y + row) {
                        *pixel = blend(*pixel, color, coverage);
                    }
                }
            }
        }
    }

    /// Draws a line of text with its upper right corner at (`x`, `y`).
    pub(crate) fn text_to(&mut self, x: usize, y: usize, font: Font, color: Rgb, text: &str) {
        self.text(x.saturating_sub(font.width(text)), y, font, color, text);
    }

    /// Writes the picture as PNG.
    pub(crate) fn write_png(&self, out: impl Write) -> io::Result<()> {
        let side = |n| u32::try_from(n).map_err(|_| io::Error::other("the picture is too large"));
        let mut out = BufWriter::new(out);
        let mut encoder = png::Encoder::new(&mut out, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // Neighboring pixels of the map are equal or unrelated, so filters would only make
        // repetitions harder to compress.
        encoder.set_filter(png::Filter::NoFilter);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        writer.finish()?;
        out.flush()
    }
}

/// `over` on top of `under`, covering it by `coverage` / 255.
fn blend(under: Rgb, over: Rgb, coverage: u8) -> Rgb {
    let (over_part, under_part) = (u32::from(coverage), 255 - u32::from(coverage));
    let mut out = under;
    for (out, (under, over)) in out.iter_mut().zip(under.into_iter().zip(over)) {
        let mixed = (u32::from(under) * under_part + u32::from(over) * over_part + 127) / 255;
        *out = u8::try_from(mixed).unwrap_or(u8::MAX);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_is_cut_off_at_the_edge() {
        let mut canvas = Canvas::new(20, 10);
        canvas.fill(18, 8, 10, 10, [1, 2, 3]);
        assert_eq!(canvas.pixels[9 * 20 + 19], [1, 2, 3]);
        assert_eq!(canvas.pixels[0], BACKGROUND);
        let font = Font { height: RasterHeight::Size16, weight: FontWeight::Regular };
        canvas.text(15, 0, font, [255; 3], "WW\u{4e2d}");
        assert_eq!(canvas.pixels[7 * 20], BACKGROUND, "nothing comes in again at the left");
    }

    #[test]
    fn png_holds_the_pixels() {
        let mut canvas = Canvas::new(3, 2);
        canvas.fill(1, 1, 1, 1, [9, 8, 7]);
        let mut bytes = Vec::new();
        canvas.write_png(&mut bytes).unwrap();
        let mut reader = png::Decoder::new(io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels.as_chunks::<3>().0, canvas.pixels);
    }

    #[test]
    fn blending_has_both_ends() {
        assert_eq!(blend([0, 100, 255], [255, 0, 255], 0), [0, 100, 255]);
        assert_eq!(blend([0, 100, 255], [255, 0, 255], 255), [255, 0, 255]);
    }
}
