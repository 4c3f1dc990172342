// The sampler's products with weights in bfloat16.
#include "panels.hpp"

template rngru::Multiply<rngru::Bfloat16>* rngru::product_of<rngru::Bfloat16, rngru::MR>(int64_t texts, int64_t vectors);
