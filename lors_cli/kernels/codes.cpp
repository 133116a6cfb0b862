// Products with the codes of quantised weights, as lors_cli/quantization/packed.py has them, and what these stand for.
// This text follows that of packed.cpp, whose helpers it uses.
//
// 64 columns of a row are decoded at once into a byte each: half bytes are spread (vpermb, vpmultishiftqb), and the codes
// of what is kept go to the columns of the mask (vpexpandb) among codes of zero. Bytes 4i to 4i + 3 are lane i of 16, so
// that a lane has one scale where groups have a multiple of 4 columns, and two (bfloat16) or four (float32) registers of
// numbers are made of them in place; the inputs are brought into that order before. In bfloat16 half bytes become numbers
// by a table (vpermw); an int8 code is (128 + its low 7 bits) - (128 or 256), both of which bfloat16 has exactly.
#include <vector>

namespace {

constexpr int STEP = 64;  // columns

struct Codes {
  const uint8_t* values;
  const uint8_t* positions;
  const int32_t* starts;
  const char* scales;         // (rows, groups), in the dtype of the inputs
  const int8_t* zero_points;  // the same shape, or null
  int64_t bytes;              // of values
  int64_t rows, columns, group;
  int64_t groups, span, a_span;  // of a row; columns for which scales are looked up at once, and so many groups
  int64_t values_ahead, positions_ahead;  // of a block of rows, as `ahead_of` gives them

  int64_t width() const { return (columns + 7) / 8; }

  template <Layout L>
  int64_t first(int64_t row) const {
    return L == DENSE ? row * columns : L == TWO_OF_FOUR ? row * (columns / 2) : starts[row * ((columns + SPAN - 1) / SPAN)];
  }
};

// Numbers of two bytes: the even and the odd columns of a step.
struct Half {
  using Number = Bf16;
  static constexpr int PARTS = 2, BYTES = 2;
  template <int BITS, int BATCH>
  static void add_products(__m512* sums, __m512i bytes, const char* x, int64_t stride, int part) {
    const __m512i code = part ? _mm512_srli_epi16(bytes, 8) : bytes;
    // -15 to 15, of which 5 bits tell
    const __m512i table = _mm512_set_epi16(-0x4080, -0x4000, -0x3fc0, -0x3f80, -0x3f60, -0x3f40, -0x3f20, -0x3f00,
                                           -0x3ef0, -0x3ee0, -0x3ed0, -0x3ec0, -0x3eb0, -0x3ea0, -0x3e90, 0, 0x4170,
                                           0x4160, 0x4150, 0x4140, 0x4130, 0x4120, 0x4110, 0x4100, 0x40e0, 0x40c0,
                                           0x40a0, 0x4080, 0x4040, 0x4000, 0x3f80, 0);
#pragma GCC unroll 8
    for (int b = 0; b < BATCH; ++b) {
      sums[b] = add_product<BITS>(sums[b], code, table, Bf16::load(x + b * stride + 64 * part));
    }
  }
  template <int BITS>
  static __m512 add_product(__m512 sum, __m512i code, __m512i table, __m512i inputs) {
    if (BITS == 4) return Bf16::add_product(sum, _mm512_permutexvar_epi16(code, table), inputs);
    const __m512i low = _mm512_ternarylogic_epi64(code, _mm512_set1_epi16(0x7f), _mm512_set1_epi16(0x4300), 0xEA);
    const __m512i high = _mm512_ternarylogic_epi64(code, _mm512_set1_epi16(0x80), _mm512_set1_epi16(-0x3d00), 0xEA);
    return Bf16::add_product(Bf16::add_product(sum, low, inputs), high, inputs);
  }
  static __m512i table_of(__m512 numbers) {  // twice: the fifth bit does not matter
    const auto narrow = _mm512_cvtneps_pbh(numbers);
    return _mm512_broadcast_i64x4(reinterpret_cast<const __m256i&>(narrow));
  }
  template <int BITS, int BATCH>
  static void add_picked(__m512* sums, const uint8_t* codes, const uint8_t* positions, __m512i table,
                         const __m512i (*x)[PARTS]) {
    __m512i code;
    if (BITS == 4) {  // each byte twice, of which vpermw looks at the four lowest bits
      const __m512i byte = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6, 6, 5, 5,
                                            4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
      code = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
      code = _mm512_srlv_epi16(_mm512_shuffle_epi8(code, byte), _mm512_set1_epi32(4 << 16));
    } else {
      code = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    }
#pragma GCC unroll 4
    for (int b = 0; b < BATCH; ++b) {
      sums[b] = add_product<BITS>(sums[b], code, table, Bf16::pick(positions, x[b]));
    }
  }
  static void order(const char* x, int64_t count, char* to) {  // up to 64 inputs; those that lack are zeros
    const __m512i low = Bf16::load_some(x, below(count)), high = Bf16::load_some(x + 64, below(std::max<int64_t>(count - 32, 0)));
    alignas(64) int16_t even[32];
    for (int i = 0; i < 32; ++i) even[i] = static_cast<int16_t>(2 * i);
    const __m512i first = _mm512_load_si512(even), second = _mm512_add_epi16(first, _mm512_set1_epi16(1));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, first, high));
    _mm512_storeu_si512(to + 64, _mm512_permutex2var_epi16(low, second, high));
  }
  static __m512 wide(const char* at, int64_t count) {
    const __m256i found = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(below(count)), at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(found), 16));
  }
  static void store(char* to, __m512 numbers, int64_t count) {  // rounded to nearest, ties to even
    const __m512i bits = _mm512_castps_si512(numbers);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(below(count)),
                             _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
};

// Numbers of four bytes: the columns 4i, 4i + 1, 4i + 2 and 4i + 3 of a step.
struct Full {
  using Number = Float;
  static constexpr int PARTS = 4, BYTES = 4;
  template <int BITS, int BATCH>
  static void add_products(__m512* sums, __m512i bytes, const char* x, int64_t stride, int part) {
    const __m512 code = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * part), 24));
#pragma GCC unroll 8
    for (int b = 0; b < BATCH; ++b) sums[b] = _mm512_fmadd_ps(code, _mm512_loadu_ps(x + b * stride + 64 * part), sums[b]);
  }
  static __m512i table_of(__m512 numbers) { return _mm512_castps_si512(numbers); }
  template <int BITS, int BATCH>
  static void add_picked(__m512* sums, const uint8_t* codes, const uint8_t* positions, __m512i table,
                         const __m512i (*x)[PARTS]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto* const at = reinterpret_cast<const __m128i*>(codes + 2 * BITS * half);
      __m512 number;
      if (BITS == 4) {  // two codes to the low halves of the bytes that vpermps looks at
        const __m512i pairs = _mm512_cvtepu8_epi64(_mm_loadl_epi64(at));
        const __m512i code = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0000000400000000), pairs);
        number = _mm512_permutexvar_ps(code, _mm512_castsi512_ps(table));
      } else {
        number = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at)));
      }
#pragma GCC unroll 4
      for (int b = 0; b < BATCH; ++b) {
        const __m512 inputs = _mm512_castsi512_ps(Float::pick(positions + 4 * half, x[b] + 2 * half));
        sums[b] = _mm512_fmadd_ps(number, inputs, sums[b]);
      }
    }
  }
  static void order(const char* x, int64_t count, char* to) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + 4 * (i % 4 * 16 + i / 4), x + 4 * i, 4);
  }
  static __m512 wide(const char* at, int64_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(below(count)), at);
  }
  static void store(char* to, __m512 numbers, int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(below(count)), numbers);
  }
};

// The group of each of 16 lanes of so many columns, from `column` of a step on, among the groups of a span.
inline __m512i lanes_of(const Codes& w, int column, int columns) {
  int32_t group[16];
  for (int i = 0; i < 16; ++i) group[i] = static_cast<int32_t>((column + columns * i) / w.group);
  return _mm512_loadu_si512(group);
}

// The scales of the lanes, for the span that begins with `group`.
template <class T>
inline __m512 scales_of(const Codes& w, int64_t row, int64_t group, __m512i lanes) {
  const char* const at = w.scales + (row * w.groups + group) * T::BYTES;
  if (w.a_span == 1) return _mm512_set1_ps(T::Number::read(at));
  return _mm512_permutexvar_ps(lanes, T::wide(at, std::min(w.a_span, w.groups - group)));
}

// The zero points as 32-bit numbers; 0 where there are none.
inline __m512i zeros_of(const Codes& w, int64_t row, int64_t group, __m512i lanes) {
  if (!w.zero_points) return _mm512_setzero_si512();
  const auto* at = reinterpret_cast<const uint8_t*>(w.zero_points + row * w.groups + group);
  const int64_t count = std::min(w.a_span, w.groups - group);
  return _mm512_permutexvar_epi32(lanes, _mm512_cvtepi8_epi32(load_bytes(at, count)));
}

// The bytes that stand for zeros, in all columns of their lanes.
template <int BITS>
inline __m512i fill_of(__m512i zeros) {
  const __m512i low = BITS == 4 ? _mm512_add_epi32(zeros, _mm512_set1_epi32(8)) : zeros;
  return _mm512_shuffle_epi8(low, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}

// Half bytes, beside which the upper half of a byte has anything, without what stands for zero.
template <int BITS>
inline __m512i without(__m512i bytes, __m512i fill) {
  return BITS == 4 ? _mm512_sub_epi8(_mm512_and_si512(bytes, _mm512_set1_epi8(15)), fill) : bytes;
}

template <Layout L>
inline void fetch_ahead(const Codes& w, const uint8_t* codes, const uint8_t* positions) {
  _mm_prefetch(codes + w.values_ahead, _MM_HINT_T0);
  if (L != DENSE) _mm_prefetch(positions + w.positions_ahead, _MM_HINT_T0);
}

// Of the 64 columns from `column` on, where a row has fewer codes and positions, a byte each; `codes` is how many codes
// are before them in all rows, or, of layouts with as many in each row, before the row. Codes that were half bytes are
// without their zero points, which `fill` has. Columns that the row does not have are any codes.
template <int BITS, Layout L>
inline __m512i next_codes(const Codes& w, const uint8_t* positions, int64_t& codes, int64_t column, __m512i fill) {
  const int64_t place = codes + (L == DENSE ? column : L == TWO_OF_FOUR ? column / 2 : 0);
  const int64_t at = BITS == 4 ? place >> 1 : place;
  positions += column / 8;
  fetch_ahead<L>(w, w.values + at, positions);
  __m512i bytes = __builtin_expect(at + 64 <= w.bytes, 1)
                      ? _mm512_loadu_si512(w.values + at)
                      : _mm512_maskz_loadu_epi8((uint64_t(1) << (w.bytes - at)) - 1, w.values + at);
  if (BITS == 4) {  // 4 bytes for 8 codes, and the one that an odd start reaches into
    const __m512i from =
        _mm512_set_epi64(0x232221201f1e1d1c, 0x1f1e1d1c1b1a1918, 0x1b1a191817161514, 0x1716151413121110,
                         0x131211100f0e0d0c, 0x0f0e0d0c0b0a0908, 0x0b0a090807060504, 0x0706050403020100);
    const int64_t odd = L == BITMASK ? place & 1 : 0;
    const __m512i bits = _mm512_set1_epi64(0x1c1814100c080400 + odd * 0x0404040404040404);
    bytes = _mm512_multishift_epi64_epi8(bits, _mm512_permutexvar_epi8(from, bytes));
  }
  if (L == DENSE) return without<BITS>(bytes, fill);
  const bool whole = __builtin_expect(column + STEP - 8 < w.columns, 1);
  const uint64_t mask = _mm_cvtsi128_si64(masks_of<L>(whole ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(positions))
                                                            : load_bytes(positions, (w.columns - column + 7) / 8)));
  if (L == BITMASK) codes += __builtin_popcountll(mask);
  return without<BITS>(_mm512_mask_expand_epi8(fill, mask, bytes), fill);
}

template <class T, int BATCH, int ROWS>
void write_sums(const Codes& w, const int64_t* row, const __m512 (*sums)[BATCH], const char* bias, char* y, int batch) {
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int b = 0; b < BATCH; ++b) {
      if (b >= batch) break;
      const float added = bias ? T::Number::read(bias + row[r] * T::BYTES) : 0.0f;
      T::Number::write(y + (b * w.rows + row[r]) * T::BYTES, _mm512_reduce_add_ps(sums[r][b]) + added);
    }
  }
}

// y[b, row] = sum over groups of scale * ((codes - zero point) . x[b]), for ROWS rows from `first` on, and BATCH inputs,
// in the order of decoded columns. Where fewer rows are left the last one is computed again. There are no zero points
// with BITS = 8.
template <class T, int BITS, Layout L, int BATCH, int ROWS>
void multiply_codes_rows(const Codes& w, int64_t first, const char* x, int64_t stride, const char* bias, char* y,
                         int batch) {
  __m512 sums[ROWS][BATCH];
  int64_t row[ROWS], codes[ROWS];
  const uint8_t* positions[ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) {
    row[r] = std::min(first + r, w.rows - 1);
    codes[r] = w.first<L>(row[r]);
    positions[r] = w.positions + row[r] * w.width();
#pragma GCC unroll 8
    for (int b = 0; b < BATCH; ++b) sums[r][b] = _mm512_setzero_ps();
  }
  const __m512i lanes = lanes_of(w, 0, 4);
  __m512i fill[ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) fill[r] = fill_of<BITS>(_mm512_setzero_si512());
  for (int64_t from = 0, group = 0; from < w.columns; from += w.span, group += w.a_span) {
    const int64_t end = std::min(from + w.span, w.columns);
    __m512 of_span[ROWS][BATCH];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      if (w.zero_points) fill[r] = fill_of<BITS>(zeros_of(w, row[r], group, lanes));
#pragma GCC unroll 8
      for (int b = 0; b < BATCH; ++b) of_span[r][b] = _mm512_setzero_ps();
    }
    for (int64_t column = from; column < end; column += STEP) {
      const char* const inputs = x + column * T::BYTES;
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const __m512i bytes = next_codes<BITS, L>(w, positions[r], codes[r], column, fill[r]);
#pragma GCC unroll 4
        for (int part = 0; part < T::PARTS; ++part) {
          T::template add_products<BITS, BATCH>(of_span[r], bytes, inputs, stride, part);
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const __m512 scale = scales_of<T>(w, row[r], group, lanes);
#pragma GCC unroll 8
      for (int b = 0; b < BATCH; ++b) sums[r][b] = _mm512_fmadd_ps(of_span[r][b], scale, sums[r][b]);
    }
  }
  write_sums<T, BATCH, ROWS>(w, row, sums, bias, y, batch);
}

// The same for 2:4 in groups of whole steps, where it is cheaper to pick the inputs of the codes. x is as it is; there may
// be zero points with BITS = 4.
template <class T, int BITS, int BATCH, int ROWS>
void multiply_picked_rows(const Codes& w, int64_t first, const char* const* x, const char* bias, char* y, int batch) {
  constexpr int64_t A_STEP = STEP / 2 * BITS / 8;  // bytes of codes
  __m512 sums[ROWS][BATCH];
  int64_t row[ROWS];
  const uint8_t *codes[ROWS], *positions[ROWS];
  __m512i table[ROWS];
  const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const int64_t steps = w.columns / STEP;
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) {
    row[r] = std::min(first + r, w.rows - 1);
    codes[r] = w.values + row[r] * steps * A_STEP;
    positions[r] = w.positions + row[r] * w.width();
    table[r] = T::table_of(numbers);
#pragma GCC unroll 4
    for (int b = 0; b < BATCH; ++b) sums[r][b] = _mm512_setzero_ps();
  }
  for (int64_t group = 0, column = 0; group < w.groups; ++group) {
    __m512 of_group[ROWS][BATCH];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      if (w.zero_points) {
        table[r] = T::table_of(_mm512_sub_ps(numbers, _mm512_set1_ps(w.zero_points[row[r] * w.groups + group])));
      }
#pragma GCC unroll 4
      for (int b = 0; b < BATCH; ++b) of_group[r][b] = _mm512_setzero_ps();
    }
    for (const int64_t end = column + w.group; column < end; column += STEP) {
      __m512i parts[BATCH][T::PARTS];
#pragma GCC unroll 4
      for (int b = 0; b < BATCH; ++b) {
#pragma GCC unroll 4
        for (int part = 0; part < T::PARTS; ++part) parts[b][part] = T::Number::load(x[b] + column * T::BYTES + 64 * part);
      }
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        fetch_ahead<TWO_OF_FOUR>(w, codes[r], positions[r]);
        T::template add_picked<BITS, BATCH>(of_group[r], codes[r], positions[r], table[r], parts);
        codes[r] += A_STEP;
        positions[r] += STEP / 8;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const __m512 scale = _mm512_set1_ps(T::Number::read(w.scales + (row[r] * w.groups + group) * T::BYTES));
#pragma GCC unroll 4
      for (int b = 0; b < BATCH; ++b) sums[r][b] = _mm512_fmadd_ps(of_group[r][b], scale, sums[r][b]);
    }
  }
  write_sums<T, BATCH, ROWS>(w, row, sums, bias, y, batch);
}

template <class T, int BITS, int BATCH, int ROWS>
void multiply_picked(const Codes& w, const char* x, const char* bias, char* y, int batch, int threads) {
  const char* inputs[BATCH];  // there may be fewer: the first is multiplied again, and not written
  for (int b = 0; b < BATCH; ++b) inputs[b] = x + (b < batch ? b : 0) * w.columns * T::BYTES;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < w.rows; row += ROWS)
    multiply_picked_rows<T, BITS, BATCH, ROWS>(w, row, inputs, bias, y, batch);
}

template <class T, int BITS, Layout L, int BATCH, int ROWS>
void multiply_codes(const Codes& w, const char* x, int64_t stride, const char* bias, char* y, int batch, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < w.rows; row += ROWS)
    multiply_codes_rows<T, BITS, L, BATCH, ROWS>(w, row, x, stride, bias, y, batch);
}

template <class T, int BITS, Layout L>
void multiply_codes_batch(const Codes& w, const char* x, const char* bias, char* y, int batch, int threads) {
  if (L == TWO_OF_FOUR && batch <= 4 && w.group % STEP == 0) {
    if (batch == 1) return multiply_picked<T, BITS, 1, 4>(w, x, bias, y, batch, threads);
    return multiply_picked<T, BITS, 4, 2>(w, x, bias, y, batch, threads);
  }
  const int64_t padded = (w.columns + STEP - 1) / STEP * STEP, stride = padded * T::BYTES;
  const int rounded = batch == 1 ? 1 : batch <= 4 ? 4 : 8;  // those that lack are zeros
  static thread_local std::vector<char> room;
  room.assign(rounded * stride + 64, 0);
  char* const ordered = room.data() + (64 - reinterpret_cast<uintptr_t>(room.data()) % 64) % 64;
  for (int b = 0; b < batch; ++b) {
    for (int64_t column = 0; column < w.columns; column += STEP) {
      const char* const from = x + (b * w.columns + column) * T::BYTES;
      T::order(from, std::min<int64_t>(w.columns - column, STEP), ordered + b * stride + column * T::BYTES);
    }
  }
  if (batch == 1) multiply_codes<T, BITS, L, 1, 4>(w, ordered, stride, bias, y, batch, threads);
  else if (batch <= 4) multiply_codes<T, BITS, L, 4, 2>(w, ordered, stride, bias, y, batch, threads);
  else multiply_codes<T, BITS, L, 8, 1>(w, ordered, stride, bias, y, batch, threads);
}

// Rows `first` to `last` (excluded) as numbers: (code - zero point) * scale, rounded once.
template <class T, int BITS, Layout L>
void decode(const Codes& w, char* into, int64_t first, int64_t last, int threads) {
  const __m512i lanes = lanes_of(w, 0, 4);
  const __m512i parts[] = {lanes_of(w, 0, 1), lanes_of(w, 16, 1), lanes_of(w, 32, 1), lanes_of(w, 48, 1)};
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = first; row < last; ++row) {
    int64_t codes = w.first<L>(row);
    const uint8_t* const positions = w.positions + row * w.width();
    char* const to = into + (row - first) * w.columns * T::BYTES;
    for (int64_t column = 0, group = 0; column < w.columns; column += STEP) {
      if (column && column % w.span == 0) group += w.a_span;
      const __m512i fill = fill_of<BITS>(zeros_of(w, row, group, lanes));
      const __m512i bytes = next_codes<BITS, L>(w, positions, codes, column, fill);
      alignas(64) int8_t of_step[STEP];
      _mm512_store_si512(of_step, bytes);
      for (int64_t part = 0, at = column; part < 4 && at < w.columns; ++part, at += 16) {
        __m512i code = _mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(of_step) + part));
        if (BITS == 8) code = _mm512_sub_epi32(code, zeros_of(w, row, group, parts[part]));
        const __m512 number = _mm512_mul_ps(_mm512_cvtepi32_ps(code), scales_of<T>(w, row, group, parts[part]));
        T::store(to + at * T::BYTES, number, std::min<int64_t>(w.columns - at, 16));
      }
    }
  }
}

template <class T, int BITS>
void multiply_codes_layout(const Codes& w, int layout, const char* x, const char* bias, char* y, int batch, int threads) {
  if (layout == DENSE) multiply_codes_batch<T, BITS, DENSE>(w, x, bias, y, batch, threads);
  else if (layout == TWO_OF_FOUR) multiply_codes_batch<T, BITS, TWO_OF_FOUR>(w, x, bias, y, batch, threads);
  else multiply_codes_batch<T, BITS, BITMASK>(w, x, bias, y, batch, threads);
}

template <class T, int BITS>
void decode_layout(const Codes& w, int layout, char* into, int64_t first, int64_t last, int threads) {
  if (layout == DENSE) decode<T, BITS, DENSE>(w, into, first, last, threads);
  else if (layout == TWO_OF_FOUR) decode<T, BITS, TWO_OF_FOUR>(w, into, first, last, threads);
  else decode<T, BITS, BITMASK>(w, into, first, last, threads);
}

Codes codes_of(const void* values, const void* positions, const void* starts, const void* scales,
               const void* zero_points, int64_t bytes, int64_t rows, int64_t columns, int64_t group) {
  return {static_cast<const uint8_t*>(values), static_cast<const uint8_t*>(positions),
          static_cast<const int32_t*>(starts), static_cast<const char*>(scales),
          static_cast<const int8_t*>(zero_points), bytes, rows, columns, group,
          columns / group, std::max<int64_t>(group, STEP), std::max<int64_t>(STEP / group, 1),
          ahead_of(4 * (bytes / std::max<int64_t>(rows, 1))), ahead_of(4 * ((columns + 7) / 8))};
}

}  // namespace

extern "C" {

// As lors_multiply, for codes of `bits` (4 or 8: what they are stored in), whose scales have the dtype of x; those of 8
// have no zero points. Groups are of 4, 8, 16, 32 or a multiple of 64 columns.
void lors_multiply_codes(int layout, int bits, int bytes, const void* values, const void* positions, const void* starts,
                         const void* scales, const void* zero_points, int64_t size, int64_t rows, int64_t columns,
                         int64_t group, const void* x, const void* bias, void* y, int batch, int threads) {
  const Codes w = codes_of(values, positions, starts, scales, zero_points, size, rows, columns, group);
  const auto *inputs = static_cast<const char*>(x), *added = static_cast<const char*>(bias);
  char* const to = static_cast<char*>(y);
  if (bytes == 2 && bits == 4) multiply_codes_layout<Half, 4>(w, layout, inputs, added, to, batch, threads);
  else if (bytes == 2) multiply_codes_layout<Half, 8>(w, layout, inputs, added, to, batch, threads);
  else if (bits == 4) multiply_codes_layout<Full, 4>(w, layout, inputs, added, to, batch, threads);
  else multiply_codes_layout<Full, 8>(w, layout, inputs, added, to, batch, threads);
}

// Rows `first` to `last` (excluded) of what the codes stand for, in the dtype of the scales.
void lors_decode(int layout, int bits, int bytes, const void* values, const void* positions, const void* starts,
                 const void* scales, const void* zero_points, int64_t size, int64_t rows, int64_t columns, int64_t group,
                 void* into, int64_t first, int64_t last, int threads) {
  const Codes w = codes_of(values, positions, starts, scales, zero_points, size, rows, columns, group);
  char* const to = static_cast<char*>(into);
  if (bytes == 2 && bits == 4) decode_layout<Half, 4>(w, layout, to, first, last, threads);
  else if (bytes == 2) decode_layout<Half, 8>(w, layout, to, first, last, threads);
  else if (bits == 4) decode_layout<Full, 4>(w, layout, to, first, last, threads);
  else decode_layout<Full, 8>(w, layout, to, first, last, threads);
}

}  // extern "C"
