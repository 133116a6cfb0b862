// Products with the packed weights of lors_cli/sparsity/packed.py, and their unpacking, with AVX-512 (VBMI, VBMI2, BF16).
//
// A weight (R, C) lies row after row. In the bitmask layout a byte has a bit for each of 8 columns, and the values of a
// row are as many as its bits. In the 2:4 layout a byte has the places of the two values of each of two groups of 4
// columns: two byte shuffles make a bitmask of them, with 2 bits of every 4. So both are decoded in one way: load as
// many values as a register holds, spread them to the columns of the mask (vpexpand), advance by the bits of the mask.
// For up to four inputs 2:4 is cheaper the other way round: the values stay as they are, and the inputs at their places
// are picked (vpermw), which takes half of the shuffles and half of the products. Nothing is read or written outside of the tensors, which need no padding.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

enum Layout { DENSE, TWO_OF_FOUR, BITMASK };  // as in lors_cli/kernels/packed.py

constexpr int CHUNK = 128;  // columns that 16 bytes of positions tell about
constexpr int SPAN = 256;   // columns that one entry of `starts` counts from

struct Weight {
  const char* values;
  const uint8_t* positions;
  const int32_t* starts;
  int64_t total;  // how many values there are
  int64_t rows, columns;

  int64_t width() const { return (columns + 7) / 8; }
  int64_t spans() const { return (columns + SPAN - 1) / SPAN; }

  template <Layout L>
  int64_t first(int64_t row) const {
    return L == DENSE ? row * columns : L == TWO_OF_FOUR ? row * (columns / 2) : starts[row * spans()];
  }
};

inline uint32_t below(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// Numbers of a width, LANES in a register: loading the first `count` of them, and spreading them by a mask.
struct Bf16 {
  static constexpr int LANES = 32, BYTES = 2;
  static __m512i load(const char* at) { return _mm512_loadu_si512(at); }
  static __m512i load_half(const char* at) {
    return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static __m512i load_some(const char* at, uint32_t lanes) { return _mm512_maskz_loadu_epi16(lanes, at); }
  static __m512i expand(uint32_t mask, __m512i values) { return _mm512_maskz_expand_epi16(mask, values); }
  static void store_some(char* to, uint32_t lanes, __m512i values) { _mm512_mask_storeu_epi16(to, lanes, values); }
  static __m512 add_product(__m512 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(w), reinterpret_cast<__m512bh>(x));
  }
  // From 64 columns of x the inputs of 32 values, whose places are the fields of two bits in 8 bytes.
  static __m512i pick(const uint8_t* codes, const __m512i* x) {
    const __m512i field = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                                           24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i group = _mm512_set_epi16(28, 28, 24, 24, 20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0, 28, 28, 24, 24,
                                           20, 20, 16, 16, 12, 12, 8, 8, 4, 4, 0, 0);
    int64_t bits;
    std::memcpy(&bits, codes, 8);
    const __m512i fields = _mm512_multishift_epi64_epi8(field, _mm512_set1_epi64(bits));
    const __m512i place = _mm512_ternarylogic_epi64(fields, _mm512_set1_epi16(3), group, 0xEA);  // (a & b) | c
    return _mm512_mask_permutexvar_epi16(_mm512_permutexvar_epi16(place, x[0]), 0xFFFF0000u, place, x[1]);
  }
  static float read(const char* at) {
    uint16_t bits;
    std::memcpy(&bits, at, 2);
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float number;
    std::memcpy(&number, &wide, 4);
    return number;
  }
  static void write(char* to, float number) {  // rounded to nearest, ties to even
    uint32_t wide;
    std::memcpy(&wide, &number, 4);
    const uint16_t bits = number != number ? 0x7fc0 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    std::memcpy(to, &bits, 2);
  }
};

struct Float {
  static constexpr int LANES = 16, BYTES = 4;
  static __m512i load(const char* at) { return _mm512_loadu_si512(at); }
  static __m512i load_half(const char* at) { return Bf16::load_half(at); }
  static __m512i load_some(const char* at, uint32_t lanes) { return _mm512_maskz_loadu_epi32(lanes, at); }
  static __m512i expand(uint32_t mask, __m512i values) { return _mm512_maskz_expand_epi32(mask, values); }
  static void store_some(char* to, uint32_t lanes, __m512i values) { _mm512_mask_storeu_epi32(to, lanes, values); }
  static __m512 add_product(__m512 sum, __m512i w, __m512i x) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum);
  }
  // From 32 columns of x the inputs of 16 values, whose places are the fields of two bits in 4 bytes.
  static __m512i pick(const uint8_t* codes, const __m512i* x) {
    const __m512i shift = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i group = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    int32_t bits;
    std::memcpy(&bits, codes, 4);
    const __m512i fields = _mm512_srlv_epi32(_mm512_set1_epi32(bits), shift);
    const __m512i place = _mm512_ternarylogic_epi32(fields, _mm512_set1_epi32(3), group, 0xEA);
    return _mm512_permutex2var_epi32(x[0], place, x[1]);
  }
  static float read(const char* at) {
    float number;
    std::memcpy(&number, at, 4);
    return number;
  }
  static void write(char* to, float number) { std::memcpy(to, &number, 4); }
};

struct Double {  // is unpacked only
  static constexpr int LANES = 8, BYTES = 8;
  static __m512i load(const char* at) { return _mm512_loadu_si512(at); }
  static __m512i load_half(const char* at) { return Bf16::load_half(at); }
  static __m512i load_some(const char* at, uint32_t lanes) { return _mm512_maskz_loadu_epi64(lanes, at); }
  static __m512i expand(uint32_t mask, __m512i values) { return _mm512_maskz_expand_epi64(mask, values); }
  static void store_some(char* to, uint32_t lanes, __m512i values) { _mm512_mask_storeu_epi64(to, lanes, values); }
};

// The bitmasks of 128 columns from 16 bytes of positions.
template <Layout L>
inline __m128i masks_of(__m128i bytes) {
  if (L == TWO_OF_FOUR) {
    // of a group's code (the lower place + 4 times the higher one) the bits of both places
    const __m128i low = _mm_setr_epi8(1, 3, 5, 9, 3, 2, 6, 10, 5, 6, 4, 12, 9, 10, 12, 8);
    const __m128i high = _mm_slli_epi16(low, 4);
    const __m128i nibble = _mm_set1_epi8(15);
    bytes = _mm_or_si128(_mm_shuffle_epi8(low, _mm_and_si128(bytes, nibble)),
                         _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble)));
  }
  return bytes;
}

template <Layout L>
inline void masks_of(__m128i bytes, uint8_t* masks) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(masks), masks_of<L>(bytes));
}

template <class T>
inline uint32_t mask_at(const uint8_t* masks, int step) {
  uint32_t mask = 0;
  std::memcpy(&mask, masks + step * T::LANES / 8, T::LANES / 8);
  return mask;
}

// Where the reading of a row stands.
struct Cursor {
  const char* values;
  const uint8_t* positions;
};

template <class T, Layout L>
inline Cursor begin(const Weight& w, int64_t row) {
  return {w.values + w.first<L>(row) * T::BYTES, w.positions + row * w.width()};
}

// From where on fewer values than a register are left; a weight without values, which are nowhere then, has no more.
template <class T>
inline const char* few_from(const Weight& w) {
  return w.total * T::BYTES < 64 ? w.values : w.values + w.total * T::BYTES - 63;
}

// The next LANES columns of a row, all of which it has; for `few` see `few_from`.
template <class T, Layout L>
inline __m512i next(Cursor& at, uint32_t mask, const char* few, const char* end) {
  if (L == DENSE) {
    const __m512i w = T::load(at.values);
    at.values += 64;
    return w;
  }
  if (L == TWO_OF_FOUR) {
    const __m512i values = T::load_half(at.values);
    at.values += 32;
    return T::expand(mask, values);
  }
  const __m512i values = __builtin_expect(at.values < few, 1)
                             ? T::load(at.values)
                             : T::load_some(at.values, below((end - at.values) / T::BYTES));
  at.values += __builtin_popcount(mask) * T::BYTES;
  return T::expand(mask, values);
}

// The same where the row has only `columns` more of them.
template <class T, Layout L>
inline __m512i next_some(Cursor& at, uint32_t mask, int64_t columns) {
  const uint32_t there = below(std::min<int64_t>(columns, T::LANES));
  mask &= there;
  const uint32_t lanes = L == DENSE ? there : below(__builtin_popcount(mask));
  const __m512i values = T::load_some(at.values, lanes);
  at.values += __builtin_popcount(lanes) * T::BYTES;
  return L == DENSE ? values : T::expand(mask, values);
}

inline __m128i load_bytes(const uint8_t* at, int64_t count) {
  return _mm_maskz_loadu_epi8(static_cast<__mmask16>(below(count)), at);
}

// The processor's own prefetching stops short where rows are: while a block of rows is multiplied, the positions and the
// values of the next one, so many bytes ahead, are asked for. That these may lie beyond the tensors does no harm.
inline void fetch(const uint8_t* at, int64_t bytes) {
  for (int64_t byte = 0; byte < bytes; byte += 64) _mm_prefetch(at + byte, _MM_HINT_T0);
}

inline int64_t ahead_of(int64_t block) { return std::max<int64_t>(block, 8192); }

// y[b, row] = w[row] . x[b] + bias[row] for ROWS rows and up to BATCH inputs, summed in float32.
template <class T, Layout L, int BATCH, int ROWS>
void multiply_rows(const Weight& w, int64_t row, const char* const* x, const char* bias, char* y, int batch) {
  __m512 sums[ROWS][BATCH];
  Cursor at[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    at[r] = begin<T, L>(w, row + r);
    for (int b = 0; b < BATCH; ++b) sums[r][b] = _mm512_setzero_ps();
  }
  const char* const end = w.values + w.total * T::BYTES;
  const char* const few = few_from<T>(w);
  alignas(16) uint8_t masks[ROWS][CHUNK / 8];
  if (L != DENSE) fetch(at[0].positions + ROWS * w.width(), ROWS * w.width());
  const int64_t ahead = ahead_of(ROWS * (w.total / w.rows) * T::BYTES);
  int64_t column = 0;
  constexpr bool PICK = L == TWO_OF_FOUR && BATCH <= 4;
  for (; PICK && column + 2 * T::LANES <= w.columns; column += 2 * T::LANES) {
    __m512i parts[BATCH][2];
    for (int b = 0; b < BATCH; ++b) {
      parts[b][0] = T::load(x[b] + column * T::BYTES);
      parts[b][1] = T::load(x[b] + (column + T::LANES) * T::BYTES);
    }
    for (int r = 0; r < ROWS; ++r) {
      const __m512i values = T::load(at[r].values);
      _mm_prefetch(at[r].values + ahead, _MM_HINT_T1);
      at[r].values += 64;
      for (int b = 0; b < BATCH; ++b)
        sums[r][b] = T::add_product(sums[r][b], values, T::pick(at[r].positions + column / 8, parts[b]));
    }
  }
  for (; !PICK && column + CHUNK <= w.columns; column += CHUNK) {
    for (int r = 0; r < ROWS; ++r) {
      if (L != DENSE)
        masks_of<L>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at[r].positions + column / 8)), masks[r]);
    }
#pragma GCC unroll 8
    for (int step = 0; step < CHUNK / T::LANES; ++step) {
      __m512i parts[BATCH];
      for (int b = 0; b < BATCH; ++b) parts[b] = T::load(x[b] + (column + step * T::LANES) * T::BYTES);
      for (int r = 0; r < ROWS; ++r) {
        if (L == DENSE || step % 2 == 0) _mm_prefetch(at[r].values + ahead, _MM_HINT_T1);
        const __m512i part = next<T, L>(at[r], L == DENSE ? 0 : mask_at<T>(masks[r], step), few, end);
        for (int b = 0; b < BATCH; ++b) sums[r][b] = T::add_product(sums[r][b], part, parts[b]);
      }
    }
  }
  if (column < w.columns) {
    for (int r = 0; r < ROWS; ++r) {
      if (L != DENSE) masks_of<L>(load_bytes(at[r].positions + column / 8, w.width() - column / 8), masks[r]);
    }
    for (int step = 0; column < w.columns; ++step, column += T::LANES) {
      const int64_t left = w.columns - column;
      for (int r = 0; r < ROWS; ++r) {
        const __m512i part = next_some<T, L>(at[r], L == DENSE ? 0 : mask_at<T>(masks[r], step), left);
        for (int b = 0; b < BATCH; ++b) {
          const __m512i some = T::load_some(x[b] + column * T::BYTES, below(left));
          sums[r][b] = T::add_product(sums[r][b], part, some);
        }
      }
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int b = 0; b < batch; ++b) {
      const float sum = _mm512_reduce_add_ps(sums[r][b]) + (bias ? T::read(bias + (row + r) * T::BYTES) : 0.0f);
      T::write(y + (b * w.rows + row + r) * T::BYTES, sum);
    }
  }
}

template <class T, Layout L, int BATCH, int ROWS>
void multiply(const Weight& w, const char* x, const char* bias, char* y, int batch, int threads) {
  const char* inputs[BATCH];  // there may be fewer: the first is multiplied again, and not written
  for (int b = 0; b < BATCH; ++b) inputs[b] = x + (b < batch ? b : 0) * w.columns * T::BYTES;
  const int64_t blocks = (w.rows + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t row = block * ROWS;
    if (row + ROWS <= w.rows) {
      multiply_rows<T, L, BATCH, ROWS>(w, row, inputs, bias, y, batch);
    } else {
      for (; row < w.rows; ++row) multiply_rows<T, L, BATCH, 1>(w, row, inputs, bias, y, batch);
    }
  }
}

template <class T, Layout L>
void multiply_batch(const Weight& w, const char* x, const char* bias, char* y, int batch, int threads) {
  if (batch == 1) multiply<T, L, 1, 4>(w, x, bias, y, batch, threads);
  else if (batch == 2) multiply<T, L, 2, 4>(w, x, bias, y, batch, threads);
  else if (batch <= 4) multiply<T, L, 4, 4>(w, x, bias, y, batch, threads);
  else multiply<T, L, 8, 2>(w, x, bias, y, batch, threads);
}

template <class T>
void multiply_layout(const Weight& w, int layout, const char* x, const char* bias, char* y, int batch, int threads) {
  if (layout == DENSE) multiply_batch<T, DENSE>(w, x, bias, y, batch, threads);
  else if (layout == TWO_OF_FOUR) multiply_batch<T, TWO_OF_FOUR>(w, x, bias, y, batch, threads);
  else multiply_batch<T, BITMASK>(w, x, bias, y, batch, threads);
}

// Rows `first` to `last` (excluded), dense.
template <class T, Layout L>
void unpack(const Weight& w, char* into, int64_t first, int64_t last, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = first; row < last; ++row) {
    Cursor at = begin<T, L>(w, row);
    char* to = into + (row - first) * w.columns * T::BYTES;
    const char *const end = w.values + w.total * T::BYTES, *const few = few_from<T>(w);
    uint8_t masks[CHUNK / 8];
    int64_t column = 0;
    for (; column + CHUNK <= w.columns; column += CHUNK) {
      masks_of<L>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at.positions + column / 8)), masks);
      for (int step = 0; step < CHUNK / T::LANES; ++step) {
        _mm512_storeu_si512(to, next<T, L>(at, mask_at<T>(masks, step), few, end));
        to += 64;
      }
    }
    if (column < w.columns) masks_of<L>(load_bytes(at.positions + column / 8, w.width() - column / 8), masks);
    for (int step = 0; column < w.columns; ++step, column += T::LANES, to += 64) {
      const int64_t left = w.columns - column;
      T::store_some(to, below(std::min<int64_t>(left, T::LANES)), next_some<T, L>(at, mask_at<T>(masks, step), left));
    }
  }
}

template <class T>
void unpack_layout(const Weight& w, int layout, char* into, int64_t first, int64_t last, int threads) {
  if (layout == TWO_OF_FOUR) unpack<T, TWO_OF_FOUR>(w, into, first, last, threads);
  else unpack<T, BITMASK>(w, into, first, last, threads);
}

}  // namespace

extern "C" {

// y (batch, R) = x (batch, C) W^T + bias, for numbers of `bytes` (2: bfloat16, 4: float32), and at most 8 inputs.
void lors_multiply(int layout, int bytes, const void* values, const void* positions, const void* starts, int64_t total,
                   int64_t rows, int64_t columns, const void* x, const void* bias, void* y, int batch, int threads) {
  const Weight w{static_cast<const char*>(values), static_cast<const uint8_t*>(positions),
                 static_cast<const int32_t*>(starts), total, rows, columns};
  const auto *inputs = static_cast<const char*>(x), *added = static_cast<const char*>(bias);
  if (bytes == 2) multiply_layout<Bf16>(w, layout, inputs, added, static_cast<char*>(y), batch, threads);
  else multiply_layout<Float>(w, layout, inputs, added, static_cast<char*>(y), batch, threads);
}

// Rows `first` to `last` (excluded) of W, for numbers of 2, 4 or 8 bytes, into (last - first, C).
void lors_unpack(int layout, int bytes, const void* values, const void* positions, const void* starts, int64_t total,
                 int64_t rows, int64_t columns, void* into, int64_t first, int64_t last, int threads) {
  const Weight w{static_cast<const char*>(values), static_cast<const uint8_t*>(positions),
                 static_cast<const int32_t*>(starts), total, rows, columns};
  char* const to = static_cast<char*>(into);
  if (bytes == 2) unpack_layout<Bf16>(w, layout, to, first, last, threads);
  else if (bytes == 4) unpack_layout<Float>(w, layout, to, first, last, threads);
  else unpack_layout<Double>(w, layout, to, first, last, threads);
}

// Read `bytes` of memory, whole cache lines, and nothing more: what is returned keeps the compiler from leaving it out.
int64_t lors_read(const void* memory, int64_t bytes, int threads) {
  const char* const at = static_cast<const char*>(memory);
  int64_t found = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(^ : found) if (threads > 1)
  for (int64_t page = 0; page < bytes / 4096; ++page) {
    __m512i parts[4] = {};
    for (int64_t line = 0; line < 4096; line += 256) {
      for (int i = 0; i < 4; ++i) parts[i] = _mm512_xor_si512(parts[i], Bf16::load(at + page * 4096 + line + 64 * i));
    }
    found ^= _mm512_reduce_add_epi64(_mm512_xor_si512(_mm512_xor_si512(parts[0], parts[1]),
                                                      _mm512_xor_si512(parts[2], parts[3])));
  }
  return found;
}

}  // extern "C"
