"""The 50 scenarios of the nano task, in a small template language. prepare.py fills them in.

A scenario is a paragraph: two wordings of one question, each ending in "?", then the explanation,
one sentence per step. An indented line continues the line above it.

  {a:8-60}         a number, drawn where its range is given, and repeated as {a}. A list works
                   too, {d:80|100}, and a third number is the increment: {d:20-90/10}
  {a + b = c}      a step: c is computed, and the sentence shows "12+30=42".
                   {a / b = c:2-9} accepts only results in this range
  {A} {B} {C}      different names of people
  {fruit}          a word from the lexicon's list of that name; {fruit2} is a second one
  {box:túi|giỏ}    a word from the list given here. No two slots of a problem get the same word
  (tất cả|)        one of these wordings, drawn each time; the last one here is empty

A scenario does not say which numbers fit together: prepare.py draws them again until every step
is arithmetic that a small model can learn. As in Vietnamese schools, a product names the amount
per group first ("6 quả x 4 giỏ"). Money is counted in thousands of đồng.
"""

ONE_STEP = """
{A} có {a:8-60} {fruit}, được {family} cho thêm {b:5-39} {fruit}.
    Hỏi (bây giờ|) {A} có (tất cả|) bao nhiêu {fruit}?
Sau khi được {family} cho thêm {b} {fruit} vào {a} {fruit} đang có, {A} có bao nhiêu {fruit}?
{A} có (tất cả|) {a + b = c} {fruit}.

Trên xe buýt có {a:15-60} người. Đến bến {stop:chợ|trường học|công viên}, {b:3-40} người xuống xe.
    Hỏi trên xe còn (lại|) bao nhiêu người?
Xe buýt chở {a} người đến {stop} thì có {b} người xuống. Trên xe còn bao nhiêu người?
Trên xe còn (lại|) {a - b = c} người.

{A} có {n:2-12} {box:túi|giỏ|rổ} {fruit}, mỗi {box} có {m:3-12} {fruit}.
    Hỏi {A} có (tất cả|) bao nhiêu {fruit}?
Mỗi {box} đựng {m} {fruit}. {A} có {n} {box} như thế. {A} có bao nhiêu {fruit}?
{A} có {m x n = c} {fruit}.

{A} chia đều {a:12-132} {sweet} cho {k:3-12} bạn. Hỏi mỗi bạn được bao nhiêu {sweet}?
Có {a} {sweet} chia đều cho {k} bạn của {A}. Mỗi bạn được bao nhiêu {sweet}?
Mỗi bạn được {a / k = c} {sweet}.

{A} xếp {a:12-132} {pen} vào các {box:túi|thùng|ngăn}, mỗi {box} {k:3-12} {pen}.
    Hỏi {A} cần bao nhiêu {box}?
Mỗi {box} đựng {k} {pen}. Cần bao nhiêu {box} để {A} cất (hết|) {a} {pen}?
{A} cần {a / k = c} {box}.

Năm nay {A} {a:5-14} tuổi. {parent:bố|mẹ|cô|bác} của {A} hơn {A} {b:20-38} tuổi.
    Hỏi {parent} của {A} bao nhiêu tuổi?
{A} {a} tuổi và kém {parent} {b} tuổi. Hỏi {parent} của {A} bao nhiêu tuổi?
{parent} của {A} {a + b = c} tuổi.

Quyển (sách|truyện) của {A} có {a:40-99} trang. {A} đã đọc {b:11-80} trang.
    Hỏi {A} còn phải đọc bao nhiêu trang?
{A} đã đọc {b} trang của một quyển sách dày {a} trang. {A} còn bao nhiêu trang chưa đọc?
{A} còn (phải đọc|) {a - b = c} trang.

{A} có {m:3-12} {toy}. Số {toy} của {B} gấp {k:3-9} lần {A}. Hỏi {B} có bao nhiêu {toy}?
{B} có số {toy} gấp {k} lần của {A}. {A} có {m} {toy}, vậy {B} có bao nhiêu {toy}?
{B} có {m x k = c} {toy}.

{A} gấp được {a:25-90} {craft:con hạc giấy|ngôi sao giấy|con thuyền giấy},
    {B} gấp được {b:8-60} {craft}. Hỏi {A} gấp hơn {B} bao nhiêu {craft}?
{A} gấp được {a} {craft}, {B} gấp được {b} {craft}. {B} gấp ít hơn {A} bao nhiêu {craft}?
{A} gấp hơn {B} {a - b = c} {craft}.

{A} mua {n:2-12} {pen}, mỗi {pen} giá {m:3-12} nghìn đồng.
    Hỏi {A} phải trả bao nhiêu nghìn đồng?
Một {pen} giá {m} nghìn đồng. {A} mua {n} {pen} như thế thì hết bao nhiêu nghìn đồng?
{A} phải trả {m x n = c} nghìn đồng.
"""

TWO_STEPS = """
{A} có {a:8-45} {toy}. {B} có nhiều hơn {A} {b:3-30} {toy}. Hỏi cả hai bạn có bao nhiêu {toy}?
{A} có {a} {toy}, ít hơn {B} {b} {toy}. Hai bạn có (tất cả|) bao nhiêu {toy}?
{B} có {a + b = c} {toy}. Hai bạn có {a + c = d} {toy}.

{A} hái được {a:15-60} {fruit}, {B} hái được ít hơn {A} {b:3-40} {fruit}.
    Hỏi hai bạn hái được (tất cả|) bao nhiêu {fruit}?
{A} hái được {a} {fruit}, nhiều hơn {B} {b} {fruit}. Cả hai hái được bao nhiêu {fruit}?
{B} hái được {a - b = c} {fruit}. Hai bạn hái được {a + c = d} {fruit}.

{A} mua {n:2-9} {pen}, mỗi {pen} giá {m:3-12} nghìn đồng,
    và đưa cô bán hàng {d:50|80|100} nghìn đồng.
    Hỏi {A} được trả lại bao nhiêu nghìn đồng?
{A} có {d} nghìn đồng và mua {n} {pen} giá {m} nghìn đồng mỗi {pen}.
    Hỏi {A} còn lại bao nhiêu nghìn đồng?
{n} {pen} giá {m x n = c} nghìn đồng. {A} còn {d - c = e} nghìn đồng.

Trên xe buýt có {a:20-60} người. Đến bến, {b:5-30} người xuống và {c:3-30} người lên.
    Hỏi bây giờ trên xe có bao nhiêu người?
Xe buýt chở {a} người. Ở (trạm|bến) sau có {c} người lên và {b} người xuống.
    Xe còn chở bao nhiêu người?
Sau khi {b} người xuống, xe còn {a - b = d} người. Khi {c} người lên, xe có {d + c = e} người.

{A} có {n:2-9} {box:túi|hộp|lọ} kẹo, mỗi {box} {m:5-12} cái, và {b:3-30} cái kẹo ở ngoài.
    Hỏi {A} có tất cả bao nhiêu cái kẹo?
{A} xếp kẹo vào {n} {box}, mỗi {box} {m} cái, thì còn thừa {b} cái. {A} có bao nhiêu cái kẹo?
Trong các {box} có {m x n = c} cái kẹo. {A} có tất cả {c + b = d} cái kẹo.

{A} có {a:8-60} {sweet}, {B} có {b:6-60} {sweet}. Hai bạn gộp lại rồi chia đều cho {k:3-12} người.
    Hỏi mỗi người được bao nhiêu {sweet}?
{A} góp {a} {sweet} và {B} góp {b} {sweet} để chia đều cho {k} người.
    Mỗi người được bao nhiêu {sweet}?
Hai bạn có {a + b = c} {sweet}. Mỗi người được {c / k = d} {sweet}.

Quyển (sách|truyện) của {A} dày {a:50-99} trang.
    {A} đã đọc {b:10-50} trang và đọc hết phần còn lại trong {k:3-9} ngày.
    Hỏi mỗi ngày {A} đọc bao nhiêu trang?
{A} đã đọc {b} trong số {a} trang sách.
    Nếu chia đều phần còn lại cho {k} ngày thì mỗi ngày {A} đọc bao nhiêu trang?
{A} còn {a - b = c} trang chưa đọc. Mỗi ngày {A} đọc {c / k = d} trang.

{A} đã có {a:5-40} nghìn đồng trong lợn đất. Mỗi tuần {A} bỏ thêm {m:4-12} nghìn đồng.
    Hỏi sau {n:2-9} tuần {A} có bao nhiêu nghìn đồng?
Mỗi tuần {A} để dành {m} nghìn đồng.
    Biết {A} có sẵn {a} nghìn đồng, hỏi sau {n} tuần {A} có bao nhiêu nghìn đồng?
Sau {n} tuần {A} để dành thêm {m x n = c} nghìn đồng. {A} có {a + c = d} nghìn đồng.

Năm nay {A} {a:5-12} tuổi, tuổi {parent:mẹ|bố|cô|bác} của {A} gấp {k:3-7} lần tuổi {A}.
    Hỏi {parent} hơn {A} bao nhiêu tuổi?
{A} {a} tuổi. {parent} của {A} có số tuổi gấp {k} lần {A}. {A} kém {parent} bao nhiêu tuổi?
{parent} của {A} {a x k = c:24-66} tuổi. {parent} hơn {A} {c - a = d} tuổi.

Bác {A} có {a:20-98/2} {goods:quả dưa hấu|quả bí|con gà|con vịt}.
    Buổi sáng bác bán một nửa, buổi chiều bán thêm {b:3-40} {goods}.
    Hỏi bác còn lại bao nhiêu {goods}?
Bác {A} mang {a} {goods} ra chợ. Bác bán được một nửa, rồi bán thêm {b} {goods} nữa.
    Bác còn bao nhiêu {goods}?
Sau khi bán một nửa, bác {A} còn {a / 2 = c} {goods}. Cuối cùng bác còn {c - b = d} {goods}.

{land:mảnh vườn|sân bóng|khu đất} hình chữ nhật dài {a:16-32} mét, rộng {b:4-15} mét.
    Hỏi chu vi {land} là bao nhiêu mét?
Tính chu vi của {land} hình chữ nhật có hai cạnh {a} mét và {b} mét. Chu vi là bao nhiêu mét?
Nửa chu vi {land} là {a + b = c} mét. Chu vi là {c x 2 = d} mét.

{n:2-9} {pen} giá {a:12-108} nghìn đồng. Hỏi {m:2-12} {pen} như thế giá bao nhiêu nghìn đồng?
{A} mua {n} {pen} hết {a} nghìn đồng. {B} mua {m} {pen} cùng loại thì hết bao nhiêu nghìn đồng?
Một {pen} giá {a / n = c:2-12} nghìn đồng. {m} {pen} giá {c x m = d} nghìn đồng.

Vườn nhà {A} có {n:4-12} hàng {tree:cây cam|cây xoài|cây bưởi}, mỗi hàng {m:4-12} cây.
    Có {b:3-30} cây chưa ra quả. Hỏi có bao nhiêu cây đã ra quả?
Bác {A} trồng {n} hàng {tree}, mỗi hàng {m} cây, nhưng {b} cây bị chết. Vườn còn bao nhiêu cây?
Vườn có {m x n = c} cây. (Trừ đi {b} cây thì còn|Số cây phải tìm là) {c - b = d} cây.

{tank:bể|thùng|bồn} chứa được {a:40-120} lít nước, đang có {b:5-60} lít.
    Mỗi phút vòi chảy vào {k:3-12} lít. Hỏi sau bao nhiêu phút thì {tank} đầy?
Vòi chảy {k} lít mỗi phút vào {tank} {a} lít đã có {b} lít. Mất bao nhiêu phút để {tank} đầy?
Cần thêm {a - b = c} lít nước. {tank} đầy sau {c / k = d} phút.

{A} có {a:6-45} {toy}, {B} có {b:6-45} {toy}, {C} có {c:6-45} {toy}.
    Hỏi cả ba bạn có (tất cả|) bao nhiêu {toy}?
Ba bạn {A}, {B} và {C} lần lượt có {a}, {b} và {c} {toy}. Ba bạn có tất cả bao nhiêu {toy}?
{A} và {B} có {a + b = d} {toy}. Cả ba bạn có {d + c = e} {toy}.
"""

THREE_STEPS = """
{A} có {a:8-40} {toy}. {B} có nhiều hơn {A} {b:3-25} {toy}, {C} có ít hơn {B} {c:3-30} {toy}.
    Hỏi {A} và {C} có tất cả bao nhiêu {toy}?
{B} hơn {A} {b} {toy} và hơn {C} {c} {toy}. Biết {A} có {a} {toy}, {A} và {C} có bao nhiêu {toy}?
{B} có {a + b = d} {toy}. {C} có {d - c = e} {toy}. {A} và {C} có {a + e = f} {toy}.

{A} mua {n:2-7} {pen} giá {m:3-10} nghìn đồng mỗi {pen}
    và {k:2-7} {pen2} giá {p:3-10} nghìn đồng mỗi {pen2}.
    Hỏi {A} phải trả bao nhiêu nghìn đồng?
Một {pen} giá {m} nghìn đồng, một {pen2} giá {p} nghìn đồng.
    {A} mua {n} {pen} và {k} {pen2} hết bao nhiêu nghìn đồng?
{n} {pen} giá {m x n = c} nghìn đồng. {k} {pen2} giá {p x k = d} nghìn đồng.
    {A} phải trả {c + d = e} nghìn đồng.

{A} có {a:10-50} nghìn đồng, mỗi tuần để dành thêm {m:4-12} nghìn đồng.
    Sau {n:3-9} tuần {A} mua {gift:một đôi giày|một cái cặp|một bộ cờ} giá {b:40-90} nghìn đồng.
    Hỏi {A} còn lại bao nhiêu nghìn đồng?
Mỗi tuần {A} tiết kiệm {m} nghìn đồng trong {n} tuần.
    {A} có sẵn {a} nghìn đồng và mua {gift} hết {b} nghìn đồng. {A} còn bao nhiêu nghìn đồng?
{A} để dành được {m x n = c} nghìn đồng.
    {A} có {a + c = d} nghìn đồng. {A} còn {d - b = e} nghìn đồng.

{A} đọc quyển sách {p:60-120} trang.
    Ngày đầu {A} đọc {a:8-40} trang, ngày thứ hai đọc nhiều hơn ngày đầu {b:2-20} trang.
    Hỏi còn bao nhiêu trang chưa đọc?
Thứ bảy {A} đọc {a} trang, chủ nhật đọc nhiều hơn thứ bảy {b} trang. Sách dày {p} trang.
    {A} còn phải đọc bao nhiêu trang?
Ngày thứ hai {A} đọc {a + b = c} trang.
    Cả hai ngày {A} đọc {a + c = d} trang. {A} còn {p - d = e} trang.

Bác {A} hái được {m:5-12} {fruit} từ mỗi cây trong {n:3-12} cây, cho hàng xóm {b:3-30} {fruit}
    rồi xếp đều số còn lại vào {k:3-12} {box:giỏ|thùng|rổ}. Hỏi mỗi {box} có bao nhiêu {fruit}?
Vườn có {n} cây, mỗi cây ra {m} {fruit}.
    Bác {A} bỏ đi {b} quả hỏng và chia đều phần còn lại vào {k} {box}.
    Mỗi {box} có bao nhiêu {fruit}?
Bác {A} hái được {m x n = c} {fruit}. Bác còn {c - b = d} {fruit}. Mỗi {box} có {d / k = e} {fruit}.

Lớp của {A} có {n:3-6} tổ, mỗi tổ {m:6-12} bạn.
    Hôm nay {b:1-9} bạn nghỉ học, các bạn còn lại chia đều thành {k:3-9} nhóm.
    Hỏi mỗi nhóm có bao nhiêu bạn?
Một lớp gồm {n} tổ, mỗi tổ {m} bạn. Khi vắng {b} bạn, cô giáo chia lớp thành {k} nhóm bằng nhau.
    Mỗi nhóm có bao nhiêu bạn?
Lớp có {m x n = c} bạn. Hôm nay có mặt {c - b = d} bạn. Mỗi nhóm có {d / k = e} bạn.

Vòi thứ nhất mỗi phút chảy {a:2-8} lít, vòi thứ hai mỗi phút chảy {b:2-8} lít.
    {tank:bể|bồn|thùng} chứa được {p:40-140} lít.
    Mở cả hai vòi {n:3-9} phút thì {tank} còn thiếu bao nhiêu lít nước?
{tank} {p} lít đang trống. Hai vòi chảy {a} lít và {b} lít mỗi phút.
    Sau {n} phút cần thêm bao nhiêu lít để {tank} đầy?
Mỗi phút hai vòi chảy {a + b = c} lít. Trong {n} phút chảy được {c x n = d} lít.
    {tank} còn thiếu {p - d = e} lít.

Xe buýt chở {a:15-50} người. Bến một có {b:4-40} người lên, bến hai có {c:4-40} người xuống,
    bến ba có {d:3-20} người xuống. Hỏi trên xe còn bao nhiêu người?
Trên xe buýt có {a} người. Xe đón thêm {b} người, sau đó {c} người xuống ở chợ
    và {d} người xuống ở {stop:trường học|công viên|bến xe}. Trên xe còn bao nhiêu người?
Khi {b} người lên, xe có {a + b = e} người. Khi {c} người xuống, xe còn {e - c = f} người.
    Cuối cùng xe còn {f - d = g} người.

{A} có {a:12-98/2} {toy}. {A} cho {B} một nửa, mua thêm {b:3-40} {toy}
    rồi xếp đều vào {k:3-9} {box:túi|ngăn|giỏ}. Hỏi mỗi {box} có bao nhiêu {toy}?
{A} đem cho {B} một nửa trong {a} {toy} của mình.
    Sau đó {A} được {family} tặng {b} {toy} và chia đều tất cả vào {k} {box}.
    Mỗi {box} có bao nhiêu {toy}?
Sau khi cho {B}, {A} còn {a / 2 = c} {toy}. {A} có {c + b = d} {toy}.
    Mỗi {box} có {d / k = e} {toy}.

{A}, {B} và {C} hái được lần lượt {a:3-12}, {b:3-12} và {c:3-12} {fruit}.
    Hỏi trung bình mỗi bạn hái được bao nhiêu {fruit}?
{A} hái {a} {fruit}, {B} hái {b} {fruit}, {C} hái {c} {fruit}.
    Ba bạn chia đều thì mỗi bạn được bao nhiêu {fruit}?
{A} và {B} hái được {a + b = d} {fruit}. Cả ba bạn hái được {d + c = e} {fruit}.
    Mỗi bạn được {e / 3 = f} {fruit}.

Vé người lớn giá {m:6-12} nghìn đồng, vé trẻ em giá {p:2-6} nghìn đồng.
    {place:vườn thú|bảo tàng|rạp xiếc} bán {n:4-12} vé người lớn và {k:2-12} vé trẻ em.
    Hỏi tiền vé người lớn nhiều hơn tiền vé trẻ em bao nhiêu nghìn đồng?
{place} bán {n} vé người lớn giá {m} nghìn đồng và {k} vé trẻ em giá {p} nghìn đồng.
    Tiền vé trẻ em ít hơn tiền vé người lớn bao nhiêu nghìn đồng?
Vé người lớn thu được {m x n = c} nghìn đồng. Vé trẻ em thu được {p x k = d} nghìn đồng.
    Tiền vé người lớn nhiều hơn {c - d = e} nghìn đồng.

Bác {A} mua mỗi {goods:quả dưa|cái rổ|chậu hoa} {a:5-30} nghìn đồng và bán lại {b:8-40} nghìn đồng.
    Bác bán {n:4-12} {goods}, tiền xe hết {k:5-30} nghìn đồng. Hỏi bác lãi bao nhiêu nghìn đồng?
Một {goods} mua vào {a} nghìn đồng, bán ra {b} nghìn đồng.
    Bác {A} bán được {n} {goods} và trả {k} nghìn đồng tiền xe. Bác lãi bao nhiêu nghìn đồng?
Mỗi {goods} lãi {b - a = c} nghìn đồng. {n} {goods} lãi {c x n = d} nghìn đồng.
    Bác {A} lãi {d - k = e} nghìn đồng.

{hall:rạp chiếu phim|nhà hát|hội trường} có {n:5-12} hàng ghế, mỗi hàng {m:6-12} ghế.
    Có {b:10-60} người lớn và {c:5-60} trẻ em đến xem. Hỏi còn bao nhiêu ghế trống?
Tối nay {hall} đón {b} người lớn, {c} trẻ em. Ở đây có {n} hàng, mỗi hàng {m} ghế.
    Có bao nhiêu ghế không có người ngồi?
Có tất cả {m x n = d} ghế. Số người đến xem là {b + c = e} người. Còn {d - e = f} ghế trống.

Sân có {a:4-40} con gà và {b:3-12} con {beast:bò|dê|lợn|thỏ}.
    Mỗi con gà có 2 chân, mỗi con {beast} có 4 chân. Hỏi có tất cả bao nhiêu cái chân?
Gà có 2 chân, {beast} có 4 chân. Bác {A} nuôi {a} con gà, {b} con {beast}.
    Đàn vật nuôi của bác có bao nhiêu chân?
Gà có {2 x a = c} chân. {beast} có {4 x b = d} chân. Tất cả có {c + d = e} chân.

{A} có {a:20-60} {toy}, {B} có {b:5-40} {toy}. {A} cho {B} {c:2-15} {toy}.
    Hỏi khi đó {A} hơn {B} bao nhiêu {toy}?
Lúc đầu {A} có {a} {toy} và {B} có {b} {toy}. Sau khi {A} cho {B} {c} {toy},
    {B} kém {A} bao nhiêu {toy}?
{A} còn {a - c = d} {toy}. {B} có {b + c = e} {toy}. {A} hơn {B} {d - e = f} {toy}.
"""

FOUR_STEPS = """
{A} mua {n:2-7} {pen} giá {m:3-9} nghìn đồng mỗi {pen} và {k:2-6} {pen2}
    giá {p:3-9} nghìn đồng mỗi {pen2}. {A} đưa {d:80|100} nghìn đồng.
    Hỏi {A} được trả lại bao nhiêu nghìn đồng?
{A} có {d} nghìn đồng. {A} mua {n} {pen}, mỗi {pen} {m} nghìn đồng,
    và {k} {pen2}, mỗi {pen2} {p} nghìn đồng. {A} còn bao nhiêu nghìn đồng?
{n} {pen} giá {m x n = a} nghìn đồng. {k} {pen2} giá {p x k = b} nghìn đồng.
    {A} trả {a + b = c} nghìn đồng. {A} còn {d - c = e} nghìn đồng.

{A} có {a:8-35} {toy}. {B} có nhiều hơn {A} {b:3-20} {toy}. {C} có ít hơn {B} {c:3-25} {toy}.
    Hỏi cả ba bạn có bao nhiêu {toy}?
{B} hơn {A} {b} {toy} và hơn {C} {c} {toy}. Nếu {A} có {a} {toy} thì ba bạn có bao nhiêu {toy}?
{B} có {a + b = d} {toy}. {C} có {d - c = e} {toy}.
    {A} và {B} có {a + d = f} {toy}. Cả ba bạn có {f + e = g} {toy}.

Tiệm bánh nướng {n:3-12} khay, mỗi khay {m:6-12} cái bánh. Tiệm bán một nửa,
    còn lại xếp vào hộp {k:3-9} cái. Mỗi hộp giá {p:5-12} nghìn đồng.
    Hỏi các hộp bánh giá bao nhiêu nghìn đồng?
Một nửa số bánh trong {n} khay, mỗi khay {m} cái, được bán lẻ.
    Nửa kia đóng hộp {k} cái, bán {p} nghìn đồng một hộp.
    Tiền bán các hộp bánh là bao nhiêu nghìn đồng?
Có {m x n = a} cái bánh. Số bánh xếp hộp là {a / 2 = b} cái.
    Có {b / k = c} hộp bánh. Các hộp bánh giá {p x c = d} nghìn đồng.

{A} đọc quyển sách {p:60-120} trang. Ngày đầu {A} đọc {a:6-30} trang, ngày thứ hai đọc gấp đôi.
    Phần còn lại {A} đọc đều trong {k:3-9} ngày. Hỏi mỗi ngày còn lại {A} đọc bao nhiêu trang?
Thứ bảy {A} đọc {a} trang, chủ nhật đọc gấp đôi thứ bảy. Quyển sách có {p} trang.
    Để đọc hết trong {k} ngày nữa, mỗi ngày {A} đọc bao nhiêu trang?
Ngày thứ hai {A} đọc {a x 2 = b} trang. Hai ngày {A} đọc {a + b = c} trang.
    Còn lại {p - c = d} trang. Mỗi ngày {A} đọc {d / k = e} trang.

{tank:bể|bồn|thùng} {d:60-140} lít đã có {a:5-40} lít nước.
    Hai vòi chảy vào {m:2-7} lít và {p:2-7} lít mỗi phút.
    Hỏi sau {n:3-9} phút còn thiếu bao nhiêu lít thì đầy?
Mỗi phút vòi một chảy {m} lít, vòi hai chảy {p} lít vào {tank} {d} lít đang có {a} lít.
    Sau {n} phút {tank} còn thiếu bao nhiêu lít nước?
Mỗi phút hai vòi chảy {m + p = b} lít. Trong {n} phút chảy được {b x n = c} lít.
    Khi đó có {a + c = e} lít nước. Còn thiếu {d - e = f} lít.

Năm nay {A} {a:5-11} tuổi, tuổi {parent:mẹ|bố|cô|bác} của {A} gấp {k:3-7} lần tuổi {A}.
    Hỏi {n:2-9} năm nữa tổng số tuổi của hai người là bao nhiêu?
Tuổi {parent} của {A} gấp {k} lần tuổi {A}. {A} năm nay {a} tuổi.
    Sau {n} năm, cả hai người bao nhiêu tuổi?
{parent} của {A} {a x k = b:24-60} tuổi. Sau {n} năm, {A} {a + n = c} tuổi.
    Khi đó {parent} {b + n = d} tuổi. Cả hai người {c + d = e} tuổi.

{A} có {n:3-9} bó hồng, mỗi bó {m:4-10} bông, và {p:2-6} bó cúc, mỗi bó {q:4-10} bông.
    {A} cắm đều hoa vào {k:4-12} lọ. Hỏi mỗi lọ có bao nhiêu bông hoa?
Tiệm hoa chia đều {n} bó hồng {m} bông và {p} bó cúc {q} bông vào {k} lọ.
    Mỗi lọ có tất cả bao nhiêu bông hoa?
Có {m x n = a} bông hồng. Có {q x p = b} bông cúc.
    Tất cả có {a + b = c} bông hoa. Mỗi lọ có {c / k = d} bông hoa.

Bác {A} mua {n:5-12} {goods:quả dưa|bó rau|chậu hoa|quả mít}, mỗi {goods} {m:3-9} nghìn đồng.
    Có {b:2-4} {goods} bị hỏng, số còn lại bác bán mỗi {goods} {p:6-12} nghìn đồng.
    Hỏi bác lãi bao nhiêu nghìn đồng?
{n} {goods} mua vào giá {m} nghìn đồng mỗi {goods}. Bác {A} bỏ đi {b} {goods} hỏng
    và bán số còn lại giá {p} nghìn đồng mỗi {goods}. Bác lãi bao nhiêu nghìn đồng?
Tiền mua là {m x n = a} nghìn đồng. Còn lại {n - b = c} {goods}.
    Tiền bán là {p x c = d} nghìn đồng. Bác lãi {d - a = e} nghìn đồng.

{A} có {a:20-60} {toy}. {A} làm mất {b:3-20}, mua thêm {c:5-30}, rồi cho {B} một nửa.
    Sau đó {family} tặng {A} {d:3-25} {toy}. Hỏi {A} có bao nhiêu {toy}?
Từ {a} {toy}, {A} bán {b} và đổi được thêm {c} {toy}.
    {A} chia cho {B} một nửa rồi được {family} tặng {d} {toy} nữa. {A} có bao nhiêu {toy}?
Lúc đầu {A} còn {a - b = e} {toy}. Sau đó {A} có {e + c = f} {toy}.
    Chia một nửa, {A} còn {f / 2 = g} {toy}. {A} có {g + d = h} {toy}.

Xe buýt chở {a:15-45} người. Bến một có {b:3-20} người xuống, {c:3-20} người lên.
    Bến hai có {d:3-20} người xuống, {e:3-20} người lên. Hỏi trên xe có bao nhiêu người?
Trên xe buýt có {a} người. Ở chợ {b} người xuống và {c} người lên,
    ở trường học {d} người xuống và {e} người lên. Trên xe còn bao nhiêu người?
Khi {b} người xuống, xe còn {a - b = f} người. Khi {c} người lên, xe có {f + c = g} người.
    Ở bến hai, xe còn {g - d = h} người. Cuối cùng xe có {h + e = i} người.
"""

SCENARIOS = (ONE_STEP + TWO_STEPS + THREE_STEPS + FOUR_STEPS).strip().split("\n\n")
