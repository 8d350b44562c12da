"""The 125 scenarios of the nano task, in a small template language. prepare.py fills them in.

A scenario is a paragraph: several wordings of one question, each ending in "?", then the
explanation, one sentence per step. An indented line continues the line above it.

  {a:8-60}         a number, drawn where its range is given, and repeated as {a}. A list works
                   too, {d:20|50|100}, and a third number is the increment: {d:20-90/10}
  {a + b = c}      a step: c is computed, and the sentence shows "12 + 30 = 42".
                   {a / b = c:2-9} accepts only results in this range
  {A} {B} {C}      different names of people
  {fruit}          a word from the lexicon's list of that name; {fruit2} is a second one
  {box:túi|giỏ}    a word from the list given here. No two slots of a problem get the same word
  (tất cả|hết|)    one of these wordings, drawn each time; the last one here is empty

A scenario does not say which numbers fit together: prepare.py draws them again until every step
is arithmetic that a small model can learn. As in Vietnamese schools, a product names the amount
per group first ("6 quả x 4 giỏ"). Money is counted in thousands of đồng.
"""

ONE_STEP = """
{A} có {a:8-60} {fruit}. {A} được {family} cho thêm {b:5-39} {fruit}.
    Hỏi (bây giờ|) {A} có (tất cả|) bao nhiêu {fruit}?
Lúc đầu {A} có {a} {fruit}.
    Sau khi được {family} cho thêm {b} {fruit}, {A} có (tất cả|) bao nhiêu {fruit}?
{A} có (tất cả|) {a + b = c} {fruit}.

Buổi sáng tiệm bánh bán được {a:12-60} {cake:cái bánh|chiếc bánh mì},
    buổi chiều bán được {b:8-40} {cake}.
    (Hỏi cả ngày tiệm bánh|Cả ngày tiệm) bán được bao nhiêu {cake}?
(Cả ngày|Hôm đó) tiệm bánh bán được {a + b = c} {cake}.

Trong {box:rổ|giỏ|khay} có {a:20-90} quả trứng.
    {cook:mẹ|bà|chị gái} lấy {b:4-60} quả để (làm bánh|nấu ăn).
    Hỏi trong {box} còn lại bao nhiêu quả trứng?
{cook} có {a} quả trứng trong {box} và đã (dùng|bán|lấy ra) {b} quả.
    Trong {box} còn (lại|) bao nhiêu quả trứng?
Trong {box} còn (lại|) {a - b = c} quả trứng.

Trên xe buýt có {a:15-60} (hành khách|người).
    Đến (bến|trạm) {stop:chợ|trường học|công viên|bảo tàng}, {b:3-40} người xuống xe.
    Hỏi trên xe còn (lại|) bao nhiêu người?
Xe buýt chở {a} người đến {stop} thì có {b} người xuống. Trên xe còn bao nhiêu người?
(Trên xe|Xe buýt) còn (lại|) {a - b = c} người.

{A} có {n:2-12} {box:túi|giỏ|rổ|thùng} {fruit}, mỗi {box} có {m:3-12} {fruit}.
    Hỏi {A} có (tất cả|) bao nhiêu {fruit}?
Mỗi {box} đựng {m} {fruit}. {A} có {n} {box} như thế. {A} có bao nhiêu {fruit}?
{A} có {m x n = c} {fruit}.

{hall:rạp chiếu phim|hội trường|nhà hát} có {n:3-12} hàng ghế, mỗi hàng có {m:4-12} ghế.
    Hỏi {hall} có (tất cả|) bao nhiêu ghế?
Người ta xếp ghế trong {hall} thành {n} hàng, mỗi hàng {m} ghế.
    (Hỏi|) {hall} có (tất cả|) bao nhiêu ghế?
(Trong {hall}|{hall}) có {m x n = c} ghế.

{A} chia đều {a:12-99} {sweet} cho {k:3-11} bạn. Hỏi mỗi bạn (được|nhận được) bao nhiêu {sweet}?
Có {a} {sweet} chia đều cho {k} bạn (trong nhóm của|cùng lớp với) {A}.
    Mỗi bạn được bao nhiêu {sweet}?
Mỗi bạn (được|nhận được) {a / k = c} {sweet}.

{A} xếp {a:12-99} {pen} vào các {box:túi|thùng|ngăn}, mỗi {box} {k:3-10} {pen}.
    Hỏi {A} cần bao nhiêu {box}?
Mỗi {box} đựng {k} {pen}. Cần bao nhiêu {box} để {A} cất (hết|) {a} {pen}?
{A} cần {a / k = c} {box}.

Năm nay {A} {a:5-14} tuổi. {parent:bố|mẹ|cô|bác} của {A} hơn {A} {b:20-38} tuổi.
    Hỏi {parent} của {A} bao nhiêu tuổi?
{A} {a} tuổi và kém {parent} {b} tuổi. Hỏi năm nay {parent} của {A} bao nhiêu tuổi?
(Năm nay|) {parent} của {A} {a + b = c} tuổi.

(Quyển sách|Quyển truyện) của {A} có {a:40-99} trang. {A} đã đọc {b:11-80} trang.
    Hỏi {A} còn phải đọc bao nhiêu trang (nữa|)?
{A} đã đọc được {b} trang của một quyển sách dày {a} trang. {A} còn bao nhiêu trang chưa đọc?
{A} còn (phải đọc|) {a - b = c} trang.

{A} hái được {a:9-60} {fruit}. {B} hái được nhiều hơn {A} {b:3-35} {fruit}.
    Hỏi {B} hái được bao nhiêu {fruit}?
{A} hái được {a} {fruit}, ít hơn {B} {b} {fruit}. {B} hái được bao nhiêu {fruit}?
{B} hái được {a + b = c} {fruit}.

{A} sưu tầm được {a:20-90} {toy:con tem|tấm thẻ|nhãn vở|đồng xu}, {B} có ít hơn {A} {b:4-50} {toy}.
    Hỏi {B} có bao nhiêu {toy}?
{A} có {a} {toy}, nhiều hơn {B} {b} {toy}. (Hỏi|) {B} có bao nhiêu {toy}?
{B} có {a - b = c} {toy}.

{A} có {m:3-12} {toy}. Số {toy} của {B} gấp {k:3-9} lần (số {toy} của|) {A}.
    Hỏi {B} có bao nhiêu {toy}?
{B} có số {toy} gấp {k} lần của {A}. {A} có {m} {toy}, vậy {B} có bao nhiêu {toy}?
{B} có {m x k = c} {toy}.

{A} gấp được {a:25-90} {craft:con hạc giấy|ngôi sao giấy|con thuyền giấy},
    còn {B} gấp được {b:8-60} {craft}.
    Hỏi {A} gấp được nhiều hơn {B} bao nhiêu {craft}?
{A} gấp được {a} {craft}, {B} gấp được {b} {craft}. {B} gấp được ít hơn {A} bao nhiêu {craft}?
{A} gấp (được nhiều hơn|hơn) {B} {a - b = c} {craft}.

{A} mua {n:2-12} {pen}, mỗi {pen} giá {m:3-12} nghìn đồng.
    Hỏi {A} (phải trả|trả) bao nhiêu nghìn đồng?
Một {pen} giá {m} nghìn đồng. {A} mua {n} {pen} như thế thì hết bao nhiêu nghìn đồng?
{A} phải trả {m x n = c} nghìn đồng.

{A} có {a:30-100} nghìn đồng.
    {A} mua {gift:một cái mũ|một quả bóng|một con diều|một hộp màu} hết {b:12-80} nghìn đồng.
    Hỏi {A} còn (lại|) bao nhiêu nghìn đồng?
{A} mang {a} nghìn đồng đi mua {gift} giá {b} nghìn đồng. {A} còn bao nhiêu nghìn đồng?
{A} còn (lại|) {a - b = c} nghìn đồng.

(Một sợi dây|Sợi dây của {A}) dài {a:12-99} {unit:mét|xăng-ti-mét}
    được cắt thành {k:3-9} đoạn bằng nhau.
    Hỏi mỗi đoạn dài bao nhiêu {unit}?
{A} cắt một sợi dây dài {a} {unit} thành {k} đoạn bằng nhau. Mỗi đoạn dài bao nhiêu {unit}?
Mỗi đoạn (dây|) dài {a / k = c} {unit}.

Mỗi giờ {A} đạp xe được {m:5-12} km. Hỏi sau {n:2-7} giờ {A} (đi|đạp xe) được bao nhiêu km?
{A} đạp xe {n} giờ, mỗi giờ đi được {m} km. Hỏi {A} đã đi (được|) bao nhiêu km?
{A} đạp xe từ nhà đến {town:thị trấn|biển|quê ngoại} hết {n} giờ, mỗi giờ {m} km.
    Quãng đường dài bao nhiêu km?
(Quãng đường {A} đi là|{A} đi được) {m x n = c} km.

{A} có {a:10-98/2} {sweet}. {A} cho {B} một nửa (số {sweet} đó|). Hỏi {A} cho {B} bao nhiêu {sweet}?
{A} chia cho {B} một nửa số {sweet} của mình. Lúc đầu {A} có {a} {sweet}.
    Hỏi {B} được bao nhiêu {sweet}?
{A} cho {B} {a / 2 = c} {sweet}.

{land:mảnh vườn|sân chơi|phòng học|thửa ruộng} hình chữ nhật có chiều dài {a:7-12} mét,
    chiều rộng {b:2-6} mét.
    Hỏi diện tích {land} là bao nhiêu mét vuông?
{land} hình chữ nhật dài {a} mét và rộng {b} mét. Diện tích {land} là bao nhiêu mét vuông?
Diện tích {land} là {a x b = c} mét vuông.

{place:trường học|công viên|nông trại|hợp tác xã} trồng {a:12-99}
    {tree:cây cam|cây xoài|cây chuối|cây thông} thành {k:3-11} hàng đều nhau.
    Hỏi mỗi hàng có bao nhiêu {tree}?
{a} {tree} của {place} được trồng đều thành {k} hàng. Mỗi hàng có bao nhiêu {tree}?
Mỗi hàng có {a / k = c} {tree}.

Mỗi bao {grain:gạo|ngô|thóc|đậu} nặng {m:10-90/10} kg.
    (Hỏi|) {n:3-9} bao {grain} (như thế|) nặng (tất cả|) bao nhiêu kg?
(Xe|Bác {A}) chở {n} bao {grain}, mỗi bao nặng {m} kg. (Hỏi|) số {grain} đó nặng bao nhiêu kg?
Số {grain} đó nặng {m x n = c} kg.

Mỗi ngày {A} {work:đọc truyện|tập đàn|học tiếng Anh|chạy bộ} {m:3-60} phút.
    Hôm nay {A} đã {work} được {b:2-50} phút.
    Hỏi {A} còn phải {work} bao nhiêu phút nữa?
{A} cần {work} {m} phút một ngày và đã {work} {b} phút. {A} còn phải {work} bao nhiêu phút nữa?
{A} còn phải {work} {m - b = c} phút.

Nhà {A} nuôi {a:8-60} {animal} và {b:6-40} {animal2}. Hỏi nhà {A} nuôi (tất cả|) bao nhiêu con?
{farm:nông trại|vườn thú|trang trại} có {a} {animal}, {b} {animal2}. Cả hai loại có bao nhiêu con?
(Có tất cả|Cả hai loại có) {a + b = c} con.

{k:3-9} bạn góp tiền bằng nhau để mua {gift:một quả bóng|một bộ cờ|một lẵng hoa|một cái bánh kem}
    giá {a:24-99} nghìn đồng.
    Hỏi mỗi bạn góp bao nhiêu nghìn đồng?
{gift} giá {a} nghìn đồng. {A} và các bạn, tất cả {k} người, góp tiền đều nhau để mua.
    Mỗi người góp bao nhiêu nghìn đồng?
Mỗi (bạn|người) góp {a / k = c} nghìn đồng.

{A} được {a:10-60} điểm ở (vòng|lượt) một và {b:10-40} điểm ở (vòng|lượt) hai của trò chơi.
    Hỏi {A} được tất cả bao nhiêu điểm?
Trong trò chơi, {A} được {a} điểm, rồi được thêm {b} điểm. Hỏi cuối cùng {A} có bao nhiêu điểm?
{A} được (tất cả|) {a + b = c} điểm.
"""

TWO_STEPS = """
{A} có {a:8-45} {toy}. {B} có nhiều hơn {A} {b:3-30} {toy}.
    Hỏi cả hai bạn có tất cả bao nhiêu {toy}?
{A} có {a} {toy}, ít hơn {B} {b} {toy}. Hai bạn có (tất cả|) bao nhiêu {toy}?
{B} có {a + b = c} {toy}. (Cả hai|Hai) bạn có {a + c = d} {toy}.

{A} hái được {a:15-60} {fruit}, {B} hái được ít hơn {A} {b:3-40} {fruit}.
    Hỏi hai bạn hái được (tất cả|) bao nhiêu {fruit}?
{A} hái được {a} {fruit}, nhiều hơn {B} {b} {fruit}. Cả hai hái được bao nhiêu {fruit}?
{B} hái được {a - b = c} {fruit}. (Hai bạn|Cả hai) hái được {a + c = d} {fruit}.

{A} mua {n:2-9} {pen}, mỗi {pen} giá {m:3-12} nghìn đồng,
    và đưa cô bán hàng {d:50|80|100} nghìn đồng.
    Hỏi {A} được trả lại bao nhiêu nghìn đồng?
{A} có {d} nghìn đồng và mua {n} {pen} giá {m} nghìn đồng mỗi {pen}.
    Hỏi {A} còn lại bao nhiêu nghìn đồng?
{A} mua {n} {pen} hết {m x n = c} nghìn đồng. {A} còn {d - c = e} nghìn đồng.

Trên xe buýt có {a:20-60} người. Đến bến, {b:5-30} người xuống và {c:3-30} người lên.
    Hỏi bây giờ trên xe có bao nhiêu người?
Xe buýt đang chở {a} hành khách. Ở (trạm|bến) tiếp theo có {c} người lên và {b} người xuống.
    Xe còn chở bao nhiêu người?
Sau khi {b} người xuống, trên xe còn {a - b = d} người.
    Khi có {c} người lên, trên xe có {d + c = e} người.

{A} có {n:2-9} {box:túi|hộp|lọ} kẹo, mỗi {box} {m:5-12} cái, và {b:3-30} cái kẹo (để|ở) ngoài.
    Hỏi {A} có tất cả bao nhiêu cái kẹo?
{A} xếp kẹo vào {n} {box}, mỗi {box} {m} cái, thì còn thừa {b} cái.
    (Lúc đầu|) {A} có bao nhiêu cái kẹo?
Trong các {box} có {m x n = c} cái kẹo. {A} có tất cả {c + b = d} cái kẹo.

Cửa hàng có {n:3-10} {box:thùng|giỏ|sọt} {fruit}, mỗi {box} {m:6-12} {fruit}.
    Cửa hàng đã bán {b:5-80} {fruit}.
    Hỏi cửa hàng còn lại bao nhiêu {fruit}?
Người bán hàng nhập {n} {box} {fruit}, mỗi {box} có {m} {fruit}, rồi bán được {b} {fruit}.
    Còn lại bao nhiêu {fruit}?
Lúc đầu có {m x n = c} {fruit}. Còn lại {c - b = d} {fruit}.

{A} có {a:8-50} {sweet}, {B} có {b:6-40} {sweet}. Hai bạn gộp lại rồi chia đều cho {k:3-9} người.
    Hỏi mỗi người được bao nhiêu {sweet}?
{A} góp {a} {sweet} và {B} góp {b} {sweet} để chia đều cho {k} người trong nhóm.
    Mỗi người nhận được bao nhiêu {sweet}?
Hai bạn có {a + b = c} {sweet}. Mỗi người được {c / k = d} {sweet}.

Quyển (sách|truyện) của {A} dày {a:50-99} trang.
    {A} đã đọc {b:10-50} trang và muốn đọc hết phần còn lại trong {k:3-9} ngày.
    Hỏi mỗi ngày {A} phải đọc bao nhiêu trang?
{A} đã đọc {b} trong số {a} trang sách.
    Nếu chia đều phần còn lại cho {k} ngày thì mỗi ngày {A} đọc bao nhiêu trang?
{A} còn {a - b = c} trang chưa đọc. Mỗi ngày {A} phải đọc {c / k = d} trang.

Lớp của {A} có {a:12-26} bạn nam và {b:12-26} bạn nữ,
    chia đều thành các {team:tổ|nhóm|đội}, mỗi {team} {k:4-9} bạn.
    Hỏi lớp có bao nhiêu {team}?
Một lớp có {a} nam và {b} nữ. Cô giáo chia lớp thành các {team}, mỗi {team} {k} bạn.
    Hỏi có bao nhiêu {team}?
Lớp có {a + b = c} bạn. (Số {team} là|Lớp chia thành) {c / k = d} {team}.

{A} đã có {a:5-40} nghìn đồng trong (lợn đất|ống tiền).
    Mỗi tuần {A} (bỏ thêm|tiết kiệm thêm) {m:4-12} nghìn đồng.
    Hỏi sau {n:2-10} tuần {A} có bao nhiêu nghìn đồng?
Mỗi tuần {A} để dành {m} nghìn đồng.
    Biết {A} có sẵn {a} nghìn đồng, hỏi sau {n} tuần {A} có bao nhiêu nghìn đồng?
Sau {n} tuần {A} để dành thêm {m x n = c} nghìn đồng. {A} có {a + c = d} nghìn đồng.

{A} mua {n:2-9} {pen} giá {m:3-10} nghìn đồng mỗi {pen}
    và {gift:một cái cặp|một hộp bút|một cái mũ} giá {b:15-60} nghìn đồng.
    Hỏi {A} phải trả tất cả bao nhiêu nghìn đồng?
{gift} giá {b} nghìn đồng, mỗi {pen} giá {m} nghìn đồng.
    {A} mua {gift} và {n} {pen} hết bao nhiêu nghìn đồng?
{n} {pen} giá {m x n = c} nghìn đồng. {A} phải trả {c + b = d} nghìn đồng.

Năm nay {A} {a:5-12} tuổi, tuổi {parent:mẹ|bố|cô|bác} của {A} gấp {k:3-7} lần tuổi {A}.
    Hỏi {parent} hơn {A} bao nhiêu tuổi?
{A} {a} tuổi. {parent} của {A} có số tuổi gấp {k} lần {A}. {A} kém {parent} bao nhiêu tuổi?
{parent} của {A} {a x k = c:28-60} tuổi. {parent} hơn {A} {c - a = d} tuổi.

Bác {A} có {a:20-98/2} {goods:quả dưa hấu|quả bí|con gà|con vịt}.
    Buổi sáng bác bán một nửa, buổi chiều bán thêm {b:3-40} {goods}.
    Hỏi bác còn lại bao nhiêu {goods}?
Bác {A} mang {a} {goods} ra chợ. Bác bán được một nửa, rồi bán thêm {b} {goods} nữa.
    Bác còn bao nhiêu {goods}?
Sau buổi sáng bác {A} còn {a / 2 = c} {goods}. (Cuối cùng|Sau đó) bác còn {c - b = d} {goods}.

Cứ {k:3-9} {toy:viên bi|quả bóng bay|bông hoa|cái cúc áo} của {A} thì có 1 {toy} màu {colour},
    còn lại màu {colour2}. {A} có {a:12-99} {toy}.
    Hỏi {A} có bao nhiêu {toy} màu {colour2}?
{A} có {a} {toy} màu {colour} và {colour2}. Cứ {k} {toy} thì có 1 {toy} màu {colour}.
    Có bao nhiêu {toy} màu {colour2}?
Có {a / k = c} {toy} màu {colour}. Có {a - c = d} {toy} màu {colour2}.

Trường của {A} có {a:20-200/4} (học sinh|bạn) dự thi {art:vẽ|hát|cờ vua|bơi lội},
    trong đó 25% được giải. Có {b:2-30} bạn nữ được giải.
    Hỏi có bao nhiêu bạn nam được giải?
Có {a} bạn thi {art}, 25% số bạn được giải.
    Nếu {b} bạn được giải là nữ thì có bao nhiêu bạn nam được giải?
Có {a / 4 = c} bạn được giải. Số bạn nam được giải là {c - b = d} bạn.

{land:mảnh vườn|sân bóng|tấm thảm|khu đất} hình chữ nhật dài {a:18-35} mét, rộng {b:4-17} mét.
    Hỏi chu vi {land} là bao nhiêu mét?
Tính chu vi của {land} hình chữ nhật có hai cạnh dài {a} mét và {b} mét. Chu vi là bao nhiêu mét?
Nửa chu vi {land} là {a + b = c} mét. Chu vi là {c x 2 = d} mét.

{land:mảnh vườn|thửa ruộng|cái sân|bể bơi} hình chữ nhật có chiều rộng {b:3-9} mét,
    chiều dài hơn chiều rộng {a:2-8} mét.
    Hỏi diện tích {land} là bao nhiêu mét vuông?
Chiều rộng của {land} hình chữ nhật là {b} mét, ngắn hơn chiều dài {a} mét.
    Diện tích {land} là bao nhiêu mét vuông?
Chiều dài là {b + a = c} mét. Diện tích là {c x b = d} mét vuông.

{car:xe máy|ô tô|xe tải|tàu hỏa} đi {a:60-360/10} km trong {n:2-6} giờ.
    Với tốc độ đó, trong {m:2-9} giờ {car} đi được bao nhiêu km?
Trong {n} giờ {car} chạy đều được {a} km. Hỏi {car} chạy {m} giờ thì được bao nhiêu km?
Mỗi giờ {car} đi được {a / n = c:30-90} km. Trong {m} giờ {car} đi được {c x m = d} km.

{n:2-9} {pen} giá {a:12-99} nghìn đồng.
    Hỏi {A} mua {m:2-9} {pen} như thế thì (hết|phải trả) bao nhiêu nghìn đồng?
{A} mua {n} {pen} hết {a} nghìn đồng. {B} mua {m} {pen} cùng loại thì hết bao nhiêu nghìn đồng?
Một {pen} giá {a / n = c} nghìn đồng. {m} {pen} giá {c x m = d} nghìn đồng.

Vườn nhà {A} có {n:4-12} hàng {tree:cây cam|cây xoài|cây bưởi|cây ổi}, mỗi hàng {m:4-12} cây.
    Có {b:3-30} cây chưa ra quả.
    Hỏi có bao nhiêu cây đã ra quả?
Bác {A} trồng {n} hàng {tree}, mỗi hàng {m} cây, nhưng {b} cây bị chết. Vườn còn bao nhiêu cây?
Vườn có {m x n = c} cây. (Trừ đi {b} cây thì còn|Số cây phải tìm là) {c - b = d} cây.

{tank:bể|thùng|bồn} chứa được {a:40-120} lít nước và đang có {b:5-60} lít.
    Mỗi phút vòi chảy vào {k:4-12} lít.
    Hỏi sau bao nhiêu phút thì {tank} đầy?
Vòi nước chảy {k} lít mỗi phút vào {tank} {a} lít, trong {tank} đã có {b} lít.
    Mất bao nhiêu phút để {tank} đầy nước?
Cần thêm {a - b = c} lít nước. {tank} đầy sau {c / k = d} phút.

Trường thuê {n:2-9} xe, mỗi xe có {m:7|8|9|10|12|20|30} chỗ,
    để chở {b:12-200} (học sinh|bạn) đi {trip:bảo tàng|công viên|cắm trại}.
    Hỏi còn thừa bao nhiêu chỗ?
Có {b} học sinh đi {trip} trên {n} xe, mỗi xe {m} chỗ. Hỏi có bao nhiêu chỗ trống?
Các xe có {m x n = c} chỗ. Còn thừa {c - b = d:1-25} chỗ.

{cook:mẹ|bà|cô|chị} của {A} mua {k:2-9} tá trứng, mỗi tá 12 quả, và đã dùng {b:5-60} quả.
    Hỏi còn lại bao nhiêu quả trứng?
Nhà {A} có {k} tá trứng, mỗi tá 12 quả. {cook} của {A} bán {b} quả. Còn bao nhiêu quả trứng?
{k} tá trứng có {12 x k = c} quả. Còn lại {c - b = d} quả trứng.

{A} đọc một {book:quyển sách|quyển truyện|cuốn sách}, mỗi ngày {m:4-12} trang.
    Sau {n:3-9} ngày {A} còn {b:5-50} trang.
    Hỏi {book} dày bao nhiêu trang?
Trong {n} ngày, mỗi ngày {A} đọc {m} trang của {book} và còn lại {b} trang chưa đọc.
    Hỏi {book} có bao nhiêu trang?
{A} đã đọc {m x n = c} trang. {book} dày {c + b = d} trang.

{A} có {a:6-35} {toy}, {B} có {b:6-35} {toy}, {C} có {c:6-35} {toy}.
    Hỏi cả ba bạn có (tất cả|) bao nhiêu {toy}?
Ba bạn {A}, {B} và {C} lần lượt có {a}, {b} và {c} {toy}. Ba bạn có tất cả bao nhiêu {toy}?
{A} và {B} có {a + b = d} {toy}. Cả ba bạn có {d + c = e} {toy}.

{thing:bao gạo|con lợn|con dê|thùng hàng} thứ nhất nặng {a:20-60} kg,
    {thing} thứ hai nặng {b:20-60} kg.
    Hỏi trung bình mỗi {thing} nặng bao nhiêu kg?
Hai {thing} nặng {a} kg và {b} kg. Trung bình mỗi {thing} nặng bao nhiêu kg?
Cả hai nặng {a + b = c} kg. Trung bình mỗi {thing} nặng {c / 2 = d} kg.

(Bộ phim|Vở kịch) {A} xem dài 1 giờ {b:5-50} phút. {A} đã xem được {c:10-90} phút.
    Hỏi còn bao nhiêu phút nữa thì hết?
{A} phải đi xe 1 giờ {b} phút mới về đến (nhà|quê). {A} đã đi {c} phút.
    {A} còn phải đi bao nhiêu phút?
Thời gian tất cả là {60 + b = d} phút. Còn lại {d - c = e} phút.

Cây (tre|chuối|ngô) của {A} cao {a:10-60} cm. Mỗi tuần cây cao thêm {m:2-9} cm.
    Hỏi sau {n:2-9} tuần cây cao bao nhiêu cm?
{A} trồng một cây cao {a} cm. Mỗi tuần cây lớn thêm {m} cm.
    (Hỏi|) {n} tuần sau cây cao bao nhiêu cm?
Sau {n} tuần cây cao thêm {m x n = c} cm. Cây cao {a + c = d} cm.

Cây nến của {A} dài {a:20-70} cm, mỗi giờ cháy (hết|mất) {m:2-9} cm.
    Hỏi sau {n:2-8} giờ cây nến còn dài bao nhiêu cm?
{A} thắp một cây nến dài {a} cm trong {n} giờ. Cứ một giờ nến cháy hết {m} cm.
    Cây nến còn lại bao nhiêu cm?
Nến đã cháy {m x n = c} cm. Cây nến còn {a - c = d} cm.

{A} phụ bán hàng, mỗi giờ được {m:5-12} nghìn đồng.
    {A} làm {a:2-6} giờ buổi sáng và {b:2-6} giờ buổi chiều.
    Hỏi {A} được bao nhiêu nghìn đồng?
Buổi sáng {A} làm {a} giờ, buổi chiều làm {b} giờ, mỗi giờ được trả {m} nghìn đồng.
    {A} nhận được bao nhiêu nghìn đồng?
{A} làm {a + b = c} giờ. {A} được {m x c = d} nghìn đồng.

Cuộn vải dài {a:30-100} mét.
    {A} may {n:2-9} {cloth:cái rèm|cái áo|cái váy|cái chăn}, mỗi {cloth} hết {m:2-9} mét vải.
    Hỏi cuộn vải còn bao nhiêu mét?
Mỗi {cloth} cần {m} mét vải. {A} may {n} {cloth} từ cuộn vải dài {a} mét. Còn lại bao nhiêu mét vải?
{A} dùng {m x n = c} mét vải. Cuộn vải còn {a - c = d} mét.

{A} chạy {n:3-12} vòng quanh (hồ|sân), {B} chạy {k:2-9} vòng. Mỗi vòng dài {m:50-100/10} mét.
    Hỏi {A} chạy hơn {B} bao nhiêu mét?
Sân dài {m} mét một vòng. {A} chạy {n} vòng còn {B} chạy {k} vòng.
    {B} chạy ít hơn {A} bao nhiêu mét?
{A} chạy hơn {B} {n - k = c} vòng. {A} chạy hơn {m x c = d} mét.

Bác {A} vắt được {a:30-99} lít sữa,
    giữ lại {b:3-20} lít và rót phần còn lại vào các bình {k:3-9} lít.
    Hỏi bác cần bao nhiêu bình?
Trong {a} lít sữa, bác {A} để nhà dùng {b} lít, còn lại đóng đầy các bình {k} lít.
    Bác đóng được bao nhiêu bình?
Còn lại {a - b = c} lít sữa. Bác {A} cần {c / k = d} bình.

Đội của {A} thắng {n:2-12} trận và hòa {b:2-9} trận.
    Mỗi trận thắng được 3 điểm, mỗi trận hòa được 1 điểm.
    Hỏi đội có bao nhiêu điểm?
Thắng một trận được 3 điểm, hòa được 1 điểm. Đội {A} thắng {n} trận, hòa {b} trận.
    Đội {A} được bao nhiêu điểm?
Các trận thắng được {3 x n = c} điểm. Đội được tất cả {c + b = d} điểm.

Một nửa trong {a:20-90/2} {animal:con gà|con vịt|con thỏ|con dê|con cá}
    của bác {A} màu {colour:trắng|đen|nâu|vàng}. Bác bán {b:3-30} con màu {colour}.
    Hỏi còn bao nhiêu con màu {colour}?
Bác {A} nuôi {a} {animal}, 50% màu {colour}.
    Sau khi bán {b} con màu {colour}, bác còn bao nhiêu {animal} màu {colour}?
Lúc đầu có {a / 2 = c} con màu {colour}. Còn lại {c - b = d} con màu {colour}.

{A} làm được {a:8-40} {craft:con diều|cái đèn lồng|tấm thiệp|cái vòng}. {B} làm được gấp đôi {A}.
    Hỏi hai bạn làm được bao nhiêu {craft}?
Số {craft} {B} làm gấp đôi của {A}. {A} làm được {a} {craft}.
    Hai bạn làm được tất cả bao nhiêu {craft}?
{B} làm được {a x 2 = c} {craft}. Hai bạn làm được {a + c = d} {craft}.

Bể cá có {a:20-80} con cá, {b:4-30} con màu {colour},
    {c:4-30} con màu {colour2}, còn lại màu {colour3}.
    Hỏi có bao nhiêu con cá màu {colour3}?
{A} nuôi {a} con cá gồm {b} con màu {colour}, {c} con màu {colour2} và số còn lại màu {colour3}.
    Có bao nhiêu con màu {colour3}?
Số cá màu {colour} và {colour2} là {b + c = d} con. Có {a - d = e} con cá màu {colour3}.
"""

THREE_STEPS = """
{A} có {a:8-40} {toy}. {B} có nhiều hơn {A} {b:3-25} {toy}, {C} có ít hơn {B} {c:3-30} {toy}.
    Hỏi {A} và {C} có tất cả bao nhiêu {toy}?
{B} hơn {A} {b} {toy} và cũng hơn {C} {c} {toy}.
    Biết {A} có {a} {toy}, hỏi {A} và {C} có bao nhiêu {toy}?
{B} có {a + b = d} {toy}. {C} có {d - c = e} {toy}. {A} và {C} có {a + e = f} {toy}.

{A} mua {n:2-7} {pen} giá {m:3-10} nghìn đồng mỗi {pen}
    và {k:2-6} {pen2} giá {p:3-10} nghìn đồng mỗi {pen2}.
    Hỏi {A} phải trả bao nhiêu nghìn đồng?
Một {pen} giá {m} nghìn đồng, một {pen2} giá {p} nghìn đồng.
    {A} mua {n} {pen} và {k} {pen2} hết bao nhiêu nghìn đồng?
{n} {pen} giá {m x n = c} nghìn đồng. {k} {pen2} giá {p x k = d} nghìn đồng.
    {A} phải trả {c + d = e} nghìn đồng.

{A} có {a:10-50} nghìn đồng, mỗi tuần để dành thêm {m:4-12} nghìn đồng.
    Sau {n:3-9} tuần {A} mua {gift:một đôi giày|một cái cặp|một bộ cờ} giá {b:40-90} nghìn đồng.
    Hỏi {A} còn lại bao nhiêu nghìn đồng?
Mỗi tuần {A} tiết kiệm {m} nghìn đồng trong {n} tuần.
    {A} có sẵn {a} nghìn đồng và mua {gift} hết {b} nghìn đồng.
    {A} còn bao nhiêu nghìn đồng?
{A} để dành được {m x n = c} nghìn đồng.
    {A} có {a + c = d} nghìn đồng. {A} còn {d - b = e} nghìn đồng.

{A} đọc quyển sách {p:50-99} trang.
    Ngày đầu {A} đọc {a:8-30} trang, ngày thứ hai đọc nhiều hơn ngày đầu {b:2-15} trang.
    Hỏi còn bao nhiêu trang chưa đọc?
Thứ bảy {A} đọc {a} trang, chủ nhật đọc nhiều hơn thứ bảy {b} trang. Sách dày {p} trang.
    {A} còn phải đọc bao nhiêu trang?
Ngày thứ hai {A} đọc {a + b = c} trang.
    Cả hai ngày {A} đọc {a + c = d} trang. {A} còn {p - d = e} trang.

Bác {A} hái được {m:5-12} {fruit} từ mỗi cây trong {n:3-12} cây,
    cho hàng xóm {b:3-30} {fruit} rồi xếp đều số còn lại vào {k:3-9} {box:giỏ|thùng|rổ}.
    Hỏi mỗi {box} có bao nhiêu {fruit}?
Vườn có {n} cây, mỗi cây ra {m} {fruit}.
    Bác {A} bỏ đi {b} quả hỏng và chia đều phần còn lại vào {k} {box}.
    Mỗi {box} có bao nhiêu quả?
Bác {A} hái được {m x n = c} {fruit}. Bác còn {c - b = d} {fruit}. Mỗi {box} có {d / k = e} {fruit}.

Đàn gà của bác {A} đẻ {m:4-12} quả trứng mỗi ngày.
    Trong một tuần nhà bác ăn {b:12-70} quả và bán số còn lại, mỗi quả {p:2-6} nghìn đồng.
    Hỏi bác thu được bao nhiêu nghìn đồng?
Mỗi ngày bác {A} nhặt {m} quả trứng.
    Sau một tuần bác giữ lại {b} quả và bán hết số kia với giá {p} nghìn đồng một quả.
    Bác {A} bán được bao nhiêu nghìn đồng?
Một tuần có {m x 7 = c} quả trứng. Bác {A} bán {c - b = d} quả. Bác thu được {p x d = e} nghìn đồng.

Lớp của {A} có {n:3-6} tổ, mỗi tổ {m:6-12} bạn.
    Hôm nay {b:1-9} bạn nghỉ học, các bạn còn lại chia đều thành {k:3-9} nhóm.
    Hỏi mỗi nhóm có bao nhiêu bạn?
Một lớp gồm {n} tổ, mỗi tổ {m} bạn. Khi vắng {b} bạn, cô giáo chia lớp thành {k} nhóm bằng nhau.
    Mỗi nhóm có bao nhiêu bạn?
Lớp có {m x n = c} bạn. Hôm nay có mặt {c - b = d} bạn. Mỗi nhóm có {d / k = e} bạn.

Vòi thứ nhất mỗi phút chảy {a:2-8} lít, vòi thứ hai mỗi phút chảy {b:2-8} lít.
    {tank:bể|bồn|thùng} chứa được {p:40-120} lít.
    Mở cả hai vòi {n:3-9} phút thì {tank} còn thiếu bao nhiêu lít nước?
{tank} {p} lít đang trống. Hai vòi chảy {a} lít và {b} lít mỗi phút.
    Sau {n} phút cần thêm bao nhiêu lít để {tank} đầy?
Mỗi phút hai vòi chảy {a + b = c} lít.
    Trong {n} phút chảy được {c x n = d} lít. {tank} còn thiếu {p - d = e} lít.

Xe buýt chở {a:15-50} người.
    Bến một có {b:4-25} người lên, bến hai có {c:4-40} người xuống, bến ba có {d:3-20} người xuống.
    Hỏi trên xe còn bao nhiêu người?
Trên xe có {a} khách. Xe đón thêm {b} khách,
    sau đó {c} khách xuống ở chợ và {d} khách xuống ở {stop:trường học|công viên|bến xe}.
    Trên xe còn lại bao nhiêu khách?
Khi {b} người lên, xe có {a + b = e} người.
    Khi {c} người xuống, xe còn {e - c = f} người. Cuối cùng còn {f - d = g} người.

{A} có {a:12-90/2} {toy}.
    {A} cho {B} một nửa, mua thêm {b:3-30} {toy} rồi xếp đều vào {k:3-9} {box:túi|ngăn|giỏ}.
    Hỏi mỗi {box} có bao nhiêu {toy}?
{A} đem cho {B} một nửa trong {a} {toy} của mình.
    Sau đó {A} được {family} tặng {b} {toy} và chia đều tất cả vào {k} {box}.
    Mỗi {box} có bao nhiêu {toy}?
Sau khi cho {B}, {A} còn {a / 2 = c} {toy}.
    {A} có (tất cả|) {c + b = d} {toy}. Mỗi {box} có {d / k = e} {toy}.

{land:mảnh vườn|trang trại|khu đất} hình chữ nhật dài {a:18-30} mét, rộng {b:4-17} mét
    được rào xung quanh, chừa cửa rộng {k:2-9} mét.
    Hỏi hàng rào dài bao nhiêu mét?
Bác {A} rào {land} hình chữ nhật có cạnh {a} mét và {b} mét, để trống lối vào rộng {k} mét.
    Hàng rào dài bao nhiêu mét?
Nửa chu vi là {a + b = c} mét. Chu vi là {c x 2 = d} mét. Hàng rào dài {d - k = e} mét.

Trong {land:khu vườn|công viên|sân trường} hình chữ nhật dài {a:9-12} mét,
    rộng {b:6-8} mét có một {pond:cái ao|bồn hoa|bể cát} hình vuông cạnh {k:2-5} mét.
    Hỏi diện tích còn lại là bao nhiêu mét vuông?
{pond} hình vuông cạnh {k} mét nằm trong {land} dài {a} mét, rộng {b} mét.
    Phần đất còn lại rộng bao nhiêu mét vuông?
Diện tích {land} là {a x b = c} mét vuông.
    Diện tích {pond} là {k x k = d} mét vuông. Còn lại {c - d = e} mét vuông.

{A}, {B} và {C} hái được lần lượt {a:8-40}, {b:8-40} và {c:8-40} {fruit}.
    Hỏi trung bình mỗi bạn hái được bao nhiêu {fruit}?
{A} hái {a} {fruit}, {B} hái {b} {fruit}, {C} hái {c} {fruit}.
    Ba bạn chia đều thì mỗi bạn được bao nhiêu {fruit}?
{A} và {B} hái được {a + b = d} {fruit}.
    Cả ba bạn hái được {d + c = e} {fruit}. Mỗi bạn được {e / 3 = f} {fruit}.

Vé người lớn giá {m:6-12} nghìn đồng, vé trẻ em giá {p:2-6} nghìn đồng.
    {place:vườn thú|bảo tàng|rạp xiếc} bán {n:4-12} vé người lớn và {k:2-12} vé trẻ em.
    Hỏi tiền vé người lớn nhiều hơn tiền vé trẻ em bao nhiêu nghìn đồng?
{place} bán {n} vé người lớn giá {m} nghìn đồng và {k} vé trẻ em giá {p} nghìn đồng.
    Tiền vé trẻ em ít hơn tiền vé người lớn bao nhiêu nghìn đồng?
Vé người lớn thu được {m x n = c} nghìn đồng. Vé trẻ em thu được {p x k = d} nghìn đồng.
    Tiền vé người lớn nhiều hơn {c - d = e} nghìn đồng.

Hai nơi cách nhau {p:50-120} km.
    {A} và {B} đạp xe ngược chiều để gặp nhau, mỗi giờ {A} đi {a:4-9} km, {B} đi {b:4-9} km.
    Hỏi sau {n:2-8} giờ hai bạn còn cách nhau bao nhiêu km?
{A} đi {a} km một giờ, {B} đi {b} km một giờ về phía nhau. Lúc đầu hai bạn cách nhau {p} km.
    Sau {n} giờ còn cách bao nhiêu km?
Mỗi giờ hai bạn đi được {a + b = c} km. Sau {n} giờ hai bạn đi được {c x n = d} km.
    Hai bạn còn cách nhau {p - d = e} km.

Mỗi cái bánh cần {m:2-6} quả trứng.
    Tiệm muốn làm {n:5-12} cái bánh và đã có {b:4-40} quả trứng. Mỗi vỉ có {k:4-10} quả.
    Hỏi tiệm cần mua thêm bao nhiêu vỉ trứng?
{A} làm {n} cái bánh, mỗi cái hết {m} quả trứng. Nhà còn {b} quả, mỗi vỉ ngoài chợ có {k} quả.
    {A} phải mua bao nhiêu vỉ trứng?
(Làm bánh cần|Tất cả cần) {m x n = c} quả trứng.
    Cần thêm {c - b = d} quả. Cần mua {d / k = e} vỉ trứng.

Mỗi ngày tổ một may {a:8-30} {cloth:cái áo|cái váy|cái quần}, tổ hai may ít hơn {b:2-12} {cloth}.
    Hỏi trong {n:2-9} ngày hai tổ may được bao nhiêu {cloth}?
Mỗi ngày tổ một may {a} {cloth}, nhiều hơn tổ hai {b} {cloth}.
    Trong {n} ngày cả hai tổ may được bao nhiêu {cloth}?
Mỗi ngày tổ hai may {a - b = c} {cloth}. Mỗi ngày hai tổ may {a + c = d} {cloth}.
    Trong {n} ngày hai tổ may {d x n = e} {cloth}.

{A} {a:5-12} tuổi. Tuổi {parent:mẹ|bố} của {A} gấp {k:3-7} lần tuổi {A},
    còn {grand:ông|bà} hơn {parent} {b:18-30} tuổi.
    Hỏi {grand} hơn {A} bao nhiêu tuổi?
{grand} hơn {parent} {b} tuổi. {parent} có số tuổi gấp {k} lần {A}. {A} năm nay {a} tuổi.
    {A} kém {grand} bao nhiêu tuổi?
{parent} của {A} {a x k = c:28-60} tuổi.
    {grand} {c + b = d:50-90} tuổi. {grand} hơn {A} {d - a = e} tuổi.

{A} mua {n:2-9} gói kẹo, mỗi gói {m:5-12} cái, và chia đều cho {k:3-10} bạn. Mỗi bạn ăn {b:1-8} cái.
    Hỏi mỗi bạn còn lại bao nhiêu cái kẹo?
{n} gói kẹo, mỗi gói {m} cái, được chia đều cho {k} bạn.
    Sau khi ăn {b} cái, mỗi bạn còn bao nhiêu cái kẹo?
Có tất cả {m x n = c} cái kẹo. Mỗi bạn được {c / k = d} cái. Mỗi bạn còn lại {d - b = e} cái.

{A} có cuộn ruy băng dài {a:20-99} mét.
    {A} cắt {n:2-9} đoạn, mỗi đoạn {m:2-9} mét, rồi chia đôi phần còn lại với {B}.
    Hỏi mỗi bạn được bao nhiêu mét?
Từ cuộn dây {a} mét, {A} cắt ra {n} đoạn, mỗi đoạn {m} mét.
    Phần dây còn lại {A} chia cho {B} một nửa.
    {B} được bao nhiêu mét?
Các đoạn đã cắt dài {m x n = c} mét. Cuộn dây còn {a - c = d} mét. Mỗi bạn được {d / 2 = e} mét.

{A} có {a:10-50} nghìn đồng, được {giver:mẹ|bố|ông|bà|chị gái} cho thêm {b:10-50} nghìn đồng.
    {A} mua {n:2-9} {pen}, mỗi {pen} {m:3-10} nghìn đồng.
    Hỏi {A} còn bao nhiêu nghìn đồng?
{A} được {giver} cho {b} nghìn đồng và đã có {a} nghìn đồng.
    Sau khi mua {n} {pen}, mỗi {pen} {m} nghìn đồng, {A} còn bao nhiêu nghìn đồng?
{A} có tất cả {a + b = c} nghìn đồng.
    {A} mua {n} {pen} hết {m x n = d} nghìn đồng. {A} còn {c - d = e} nghìn đồng.

{A} có {a:20-60} {toy}, {B} có {b:5-40} {toy}. {A} cho {B} {c:2-15} {toy}.
    Hỏi khi đó {A} có nhiều hơn {B} bao nhiêu {toy}?
Lúc đầu {A} có {a} {toy} và {B} có {b} {toy}.
    Sau khi {A} cho {B} {c} {toy}, {B} có ít hơn {A} bao nhiêu {toy}?
{A} còn {a - c = d} {toy}. {B} có {b + c = e} {toy}. {A} có nhiều hơn {B} {d - e = f} {toy}.

Bác {A} mua mỗi {goods:quả dưa|cái rổ|chậu hoa|bó hoa} {a:5-30} nghìn đồng
    và bán lại {b:10-40} nghìn đồng. Bác bán {n:4-12} {goods}, tiền xe hết {k:5-30} nghìn đồng.
    Hỏi bác lãi bao nhiêu nghìn đồng?
Một {goods} mua vào {a} nghìn đồng, bán ra {b} nghìn đồng.
    Bác {A} bán được {n} {goods} và trả {k} nghìn đồng tiền chợ.
    Bác lãi bao nhiêu nghìn đồng?
Mỗi {goods} lãi {b - a = c} nghìn đồng.
    {n} {goods} lãi {c x n = d} nghìn đồng. Bác {A} lãi {d - k = e} nghìn đồng.

Nông trại có {a:8-40} {animal}. Số {animal2} gấp đôi số {animal}. Nông trại bán {b:5-60} con.
    Hỏi nông trại còn lại bao nhiêu con?
Bác {A} nuôi {a} {animal}, còn số {animal2} gấp đôi số {animal}. Bác bán đi {b} con.
    Bác còn bao nhiêu con?
Số {animal2} là {a x 2 = c} con. Có tất cả {a + c = d} con. Còn lại {d - b = e} con.

Cửa hàng có {a:20-180/4} {goods:cái mũ|đôi giày|cái áo|cái nồi}.
    Buổi sáng bán được 25%, buổi chiều bán được {b:4-60} {goods}.
    Hỏi cửa hàng còn lại bao nhiêu {goods}?
Trong {a} {goods} của cửa hàng, 25% được bán hôm qua và {b} {goods} được bán hôm nay.
    Cửa hàng còn bao nhiêu {goods}?
Lần đầu cửa hàng bán {a / 4 = c} {goods}.
    Sau đó còn {a - c = d} {goods}. Cuối cùng còn {d - b = e} {goods}.

Thư viện có {n:4-12} kệ, mỗi kệ {m:5-12} quyển sách.
    Thư viện cho mượn {b:6-60} quyển và mua thêm {c:5-40} quyển.
    Hỏi bây giờ thư viện có bao nhiêu quyển sách?
Trên {n} kệ của thư viện, mỗi kệ xếp {m} quyển sách.
    Có {b} quyển được mượn đi và {c} quyển được trả lại.
    Trên kệ có bao nhiêu quyển?
Lúc đầu thư viện có {m x n = d} quyển.
    Sau khi cho mượn còn {d - b = e} quyển. Bây giờ có {e + c = f} quyển.

{A} mua {n:3-9} bó hoa, mỗi bó {m:5-12} bông.
    Có {b:2-12} bông bị héo, số còn lại {A} cắm đều vào {k:3-9} lọ.
    Hỏi mỗi lọ có bao nhiêu bông hoa?
Bỏ đi {b} bông héo từ {n} bó hoa, mỗi bó {m} bông, {A} chia đều số hoa vào {k} lọ.
    Mỗi lọ có bao nhiêu bông?
Có tất cả {m x n = c} bông hoa. Còn {c - b = d} bông tươi. Mỗi lọ có {d / k = e} bông hoa.

Buổi sáng {A} đạp xe {n:2-6} giờ, mỗi giờ {m:6-12} km.
    Buổi chiều {A} đạp xe {k:2-6} giờ, mỗi giờ {p:4-10} km.
    Hỏi cả ngày {A} đi bao nhiêu km?
{A} đạp xe {m} km mỗi giờ trong {n} giờ, rồi đi tiếp {k} giờ, mỗi giờ {p} km.
    {A} đi được tất cả bao nhiêu km?
Lúc đầu {A} đi {m x n = c} km. Sau đó {A} đi {p x k = d} km. {A} đi tất cả {c + d = e} km.

{tank:bể|bồn|thùng} có {a:50-120} lít nước.
    Gia đình {A} dùng {m:5-12} lít mỗi ngày trong {n:3-9} ngày, sau đó bơm thêm {b:10-60} lít.
    Hỏi trong {tank} có bao nhiêu lít nước?
Mỗi ngày nhà {A} dùng {m} lít nước từ {tank} {a} lít đang đầy. Sau {n} ngày, bố đổ thêm {b} lít.
    Trong {tank} có bao nhiêu lít?
Nhà {A} dùng {m x n = c} lít. Khi đó {tank} còn {a - c = d} lít.
    Trong {tank} có {d + b = e} lít nước.

Cuộn vải dài {a:40-110} mét. Thợ may {n:3-9} cái áo, mỗi cái {m:2-6} mét,
    và dùng hết phần còn lại may {k:3-9} cái rèm giống nhau.
    Hỏi mỗi cái rèm hết bao nhiêu mét vải?
Bác {A} may {n} cái áo hết {m} mét vải mỗi cái.
    Phần còn lại của cuộn vải {a} mét vừa đủ may {k} cái rèm.
    Mỗi cái rèm cần bao nhiêu mét?
May áo hết {m x n = c} mét vải. Còn lại {a - c = d} mét. Mỗi cái rèm hết {d / k = e} mét vải.

{hall:rạp chiếu phim|nhà hát|hội trường} có {n:5-12} hàng ghế, mỗi hàng {m:6-12} ghế.
    Có {b:10-60} người lớn và {c:5-60} trẻ em đến xem.
    Hỏi còn bao nhiêu ghế trống?
Tối nay {hall} đón {b} người lớn, {c} trẻ em. Ở đây có {n} hàng, mỗi hàng {m} ghế.
    Có bao nhiêu ghế không có người ngồi?
Có tất cả {m x n = d} ghế. Số người đến xem là {b + c = e} người. Còn {d - e = f:1-60} ghế trống.

{A} có {k:2-8} tá bút chì, mỗi tá 12 cây. {A} tặng cho {n:3-9} bạn, mỗi bạn {m:2-8} cây.
    Hỏi {A} còn lại bao nhiêu cây bút chì?
Cô giáo mua {k} tá bút chì, mỗi tá 12 cây, và phát cho {n} bạn, mỗi bạn {m} cây.
    Cô còn bao nhiêu cây bút chì?
Lúc đầu có {12 x k = c} cây bút chì. Đã tặng {m x n = d} cây. Còn lại {c - d = e} cây.

Đội {A} thắng {n:4-12} trận, hòa {b:2-9} trận.
    Mỗi trận thắng được 3 điểm, mỗi trận hòa được 1 điểm. Đội {B} được {c:8-40} điểm.
    Hỏi đội {A} hơn đội {B} bao nhiêu điểm?
Thắng được 3 điểm, hòa được 1 điểm. Đội {A} có {n} trận thắng và {b} trận hòa, đội {B} có {c} điểm.
    Đội {B} kém đội {A} bao nhiêu điểm?
Các trận thắng được {3 x n = d} điểm. Đội {A} được {d + b = e} điểm. Đội {A} hơn {e - c = f} điểm.

Cần chở {a:30-110} tấn {goods:xi măng|gạo|than|cát}.
    Xe to chở {n:2-9} chuyến, mỗi chuyến {m:5-10} tấn, còn lại xe nhỏ chở, mỗi chuyến {k:2-5} tấn.
    Hỏi xe nhỏ chở bao nhiêu chuyến?
Trong {a} tấn {goods}, xe to đã chở {n} chuyến, mỗi chuyến {m} tấn.
    Xe nhỏ mỗi chuyến {k} tấn cần mấy chuyến để chở hết phần còn lại?
Xe to chở {m x n = c} tấn. Còn lại {a - c = d} tấn. Xe nhỏ chở {d / k = e} chuyến.

Sân có {a:4-20} con gà và {b:3-15} con {beast:bò|dê|lợn|thỏ}.
    Mỗi con gà có 2 chân, mỗi con {beast} có 4 chân.
    Hỏi có tất cả bao nhiêu cái chân?
Gà có 2 chân, {beast} có 4 chân. Bác {A} nuôi {a} con gà, {b} con {beast}.
    Đàn vật nuôi của bác có bao nhiêu chân?
Gà có {2 x a = c} chân. {beast} có {4 x b = d} chân. Tất cả có {c + d = e} chân.

{A} có {a:4-12} {pen}, {B} có gấp {k:2-5} lần {A}, {C} có ít hơn {B} {b:3-30} {pen}.
    Hỏi {B} và {C} có tất cả bao nhiêu {pen}?
Số {pen} của {B} gấp {k} lần của {A} và hơn {C} {b} {pen}. {A} có {a} {pen}.
    {B} và {C} có bao nhiêu {pen}?
{B} có {a x k = c} {pen}. {C} có {c - b = d} {pen}. {B} và {C} có {c + d = e} {pen}.

Bốn bạn góp tiền đều nhau mua {gift:một bó hoa|một cái bánh kem|một hộp kẹo}
    giá {a:20-70} nghìn đồng và {gift2:một quả bóng|một con gấu bông|một bộ cờ}
    giá {b:20-90} nghìn đồng. {A} có {c:20-60} nghìn đồng.
    Hỏi sau khi góp {A} còn bao nhiêu nghìn đồng?
{A} cùng 3 bạn khác góp đều nhau để mua {gift} {a} nghìn đồng, {gift2} {b} nghìn đồng.
    {A} có {c} nghìn đồng thì còn lại bao nhiêu nghìn đồng?
Hai món giá {a + b = d} nghìn đồng.
    Mỗi bạn góp {d / 4 = e} nghìn đồng. {A} còn {c - e = f} nghìn đồng.
"""

FOUR_STEPS = """
{A} mua {n:2-7} {pen} giá {m:3-9} nghìn đồng mỗi {pen} và {k:2-6} {pen2}
    giá {p:3-9} nghìn đồng mỗi {pen2}. {A} đưa {d:80|100} nghìn đồng.
    Hỏi {A} được trả lại bao nhiêu nghìn đồng?
{A} có {d} nghìn đồng.
    {A} mua {n} {pen}, mỗi {pen} {m} nghìn đồng, và {k} {pen2}, mỗi {pen2} {p} nghìn đồng.
    {A} còn bao nhiêu nghìn đồng?
Tiền mua {n} {pen} là {m x n = a} nghìn đồng. Tiền mua {k} {pen2} là {p x k = b} nghìn đồng.
    {A} trả {a + b = c} nghìn đồng. {A} còn {d - c = e} nghìn đồng.

{A} có {a:8-35} {toy}. {B} có nhiều hơn {A} {b:3-20} {toy}. {C} có ít hơn {B} {c:3-25} {toy}.
    Hỏi cả ba bạn có bao nhiêu {toy}?
{B} hơn {A} {b} {toy} và hơn {C} {c} {toy}.
    Nếu {A} có {a} {toy} thì ba bạn {A}, {B}, {C} có tất cả bao nhiêu {toy}?
{B} có {a + b = d} {toy}. {C} có {d - c = e} {toy}.
    {A} và {B} có {a + d = f} {toy}. Cả ba bạn có {f + e = g} {toy}.

{A} hái được {a:10-50/2} {fruit}. {B} hái nhiều hơn {A} {k:3-25} {fruit}, {C} hái bằng một nửa {A}.
    Hỏi cả ba bạn hái được bao nhiêu {fruit}?
Số {fruit} {C} hái bằng một nửa của {A}. {A} hái {a} {fruit}, ít hơn {B} {k} {fruit}.
    Ba bạn hái được tất cả bao nhiêu {fruit}?
{B} hái được {a + k = b} {fruit}. {C} hái được {a / 2 = c} {fruit}.
    {A} và {B} hái {a + b = d} {fruit}. Cả ba bạn hái {d + c = e} {fruit}.

Tiệm bánh nướng {n:3-10} khay, mỗi khay {m:6-12} cái bánh.
    Tiệm bán một nửa, còn lại xếp vào hộp {k:3-9} cái. Mỗi hộp giá {p:5-12} nghìn đồng.
    Hỏi các hộp bánh giá bao nhiêu nghìn đồng?
Một nửa số bánh trong {n} khay, mỗi khay {m} cái, được bán lẻ.
    Nửa kia đóng hộp {k} cái, bán {p} nghìn đồng một hộp.
    Tiền bán các hộp bánh là bao nhiêu nghìn đồng?
Có {m x n = a} cái bánh. Số bánh xếp hộp là {a / 2 = b} cái.
    Có {b / k = c} hộp bánh. Các hộp bánh giá {p x c = d} nghìn đồng.

{A} và {B} góp tiền mua {gift:một bộ cờ|một cái đèn|một quả bóng} giá {d:60-100} nghìn đồng.
    Mỗi tuần {A} để dành {m:3-9} nghìn đồng, {B} để dành {p:3-9} nghìn đồng.
    Sau {n:3-6} tuần hai bạn còn thiếu bao nhiêu nghìn đồng?
Trong {n} tuần, mỗi tuần {A} để dành {m} nghìn đồng và {B} để dành {p} nghìn đồng.
    {gift} giá {d} nghìn đồng.
    Hai bạn còn thiếu bao nhiêu nghìn đồng?
{A} để dành được {m x n = a} nghìn đồng. {B} để dành được {p x n = b} nghìn đồng.
    Hai bạn có {a + b = c} nghìn đồng. Còn thiếu {d - c = e} nghìn đồng.

{A} đọc quyển sách {p:60-100} trang. Ngày đầu {A} đọc {a:6-20} trang, ngày thứ hai đọc gấp đôi.
    Phần còn lại {A} đọc đều trong {k:3-9} ngày.
    Hỏi mỗi ngày còn lại {A} đọc bao nhiêu trang?
Thứ bảy {A} đọc {a} trang, chủ nhật đọc gấp đôi thứ bảy. Quyển sách có {p} trang.
    Để đọc hết trong {k} ngày nữa, mỗi ngày {A} đọc bao nhiêu trang?
Ngày thứ hai {A} đọc {a x 2 = b} trang. Hai ngày {A} đọc {a + b = c} trang.
    Còn lại {p - c = d} trang. Mỗi ngày {A} đọc {d / k = e} trang.

Có {n:3-6} nhóm đi tham quan, mỗi nhóm có {m:6-12} học sinh, cùng {b:2-12} giáo viên.
    Mỗi xe chở {k:6-12} người, giá thuê mỗi xe {p:30-90/10} nghìn đồng.
    Hỏi tiền thuê xe là bao nhiêu nghìn đồng?
Trường thuê các xe {k} chỗ, giá {p} nghìn đồng một xe,
    để chở vừa hết {n} nhóm, mỗi nhóm {m} học sinh, và {b} giáo viên.
    Trường phải trả bao nhiêu nghìn đồng?
Có {m x n = a} học sinh. Tất cả có {a + b = c} người.
    Cần {c / k = d} xe. Tiền thuê xe là {p x d = e} nghìn đồng.

{tank:bể|bồn|thùng} {d:60-120} lít đã có {a:5-40} lít nước.
    Hai vòi chảy vào {m:2-7} lít và {p:2-7} lít mỗi phút.
    Hỏi sau {n:3-9} phút còn thiếu bao nhiêu lít thì đầy?
Mỗi phút vòi một chảy {m} lít, vòi hai chảy {p} lít vào {tank} {d} lít đang có sẵn {a} lít.
    Sau {n} phút {tank} còn thiếu bao nhiêu lít nước?
Mỗi phút hai vòi chảy {m + p = b} lít. Trong {n} phút chảy được {b x n = c} lít.
    Khi đó có {a + c = e} lít nước. Còn thiếu {d - e = f} lít.

Năm nay {A} {a:5-11} tuổi, tuổi {parent:mẹ|bố|cô|bác} của {A} gấp {k:3-7} lần tuổi {A}.
    Hỏi {n:2-9} năm nữa tổng số tuổi của hai người là bao nhiêu?
Tuổi {parent} của {A} gấp {k} lần tuổi {A}. {A} năm nay {a} tuổi.
    Sau {n} năm, cả hai người bao nhiêu tuổi?
{parent} của {A} {a x k = b:28-55} tuổi. Sau {n} năm, {A} {a + n = c} tuổi.
    Khi đó {parent} {b + n = d} tuổi. Cả hai người {c + d = e} tuổi.

{A} có {n:3-7} bó hồng, mỗi bó {m:4-10} bông, và {p:2-6} bó cúc, mỗi bó {q:4-10} bông.
    {A} cắm đều hoa vào {k:4-10} lọ.
    Hỏi mỗi lọ có bao nhiêu bông hoa?
Tiệm hoa chia đều {n} bó hồng {m} bông và {p} bó cúc {q} bông vào {k} lọ.
    Mỗi lọ có tất cả bao nhiêu bông hoa?
Có {m x n = a} bông hồng. Có {q x p = b} bông cúc.
    Tất cả có {a + b = c} bông hoa. Mỗi lọ có {c / k = d} bông hoa.

Bác {A} mua {n:5-12} {goods:quả dưa|bó rau|chậu hoa|quả mít}, mỗi {goods} {m:3-9} nghìn đồng.
    Có {b:2-4} {goods} bị hỏng, số còn lại bác bán mỗi {goods} {p:6-12} nghìn đồng.
    Hỏi bác lãi bao nhiêu nghìn đồng?
{n} {goods} mua vào giá {m} nghìn đồng mỗi {goods}.
    Bác {A} bỏ đi {b} {goods} hỏng và bán số còn lại giá {p} nghìn đồng mỗi {goods}.
    Bác lãi bao nhiêu nghìn đồng?
Tiền mua là {m x n = a} nghìn đồng. Còn lại {n - b = c} {goods}.
    Tiền bán là {p x c = d} nghìn đồng. Bác lãi {d - a = e} nghìn đồng.

{land:mảnh vườn|khu đất|trang trại} hình chữ nhật rộng {b:5-20} mét,
    chiều dài hơn chiều rộng {a:2-15} mét. Xung quanh cứ {k:2-6} mét có một cái cọc.
    Hỏi có bao nhiêu cái cọc?
Bác {A} đóng cọc quanh {land} hình chữ nhật, {k} mét một cọc.
    Chiều rộng {b} mét và ngắn hơn chiều dài {a} mét.
    Cần bao nhiêu cọc?
Chiều dài là {b + a = c} mét. Nửa chu vi là {c + b = d} mét.
    Chu vi là {d x 2 = e} mét. Có {e / k = f:4-50} cái cọc.

{A}, {B} và {C} gấp được {a:10-40}, {b:10-40} và {c:10-40}
    {craft:con hạc giấy|ngôi sao giấy|con thuyền giấy}.
    Hỏi {A} gấp nhiều hơn mức trung bình của ba bạn bao nhiêu {craft}?
Ba bạn gấp {craft}: {A} được {a}, {B} được {b}, {C} được {c}.
    Số của {A} hơn trung bình cộng cả ba bạn bao nhiêu?
{A} và {B} gấp {a + b = d} {craft}. Cả ba bạn gấp {d + c = e} {craft}.
    Trung bình là {e / 3 = f} {craft}. {A} gấp nhiều hơn {a - f = g} {craft}.

{A} có {a:20-60} {toy:con tem|tấm thẻ|viên bi|nhãn vở}.
    {A} làm mất {b:3-20}, mua thêm {c:5-30}, rồi cho {B} một nửa.
    Sau đó {family} tặng {A} {d:3-25} {toy}.
    Hỏi {A} có bao nhiêu {toy}?
Từ {a} {toy}, {A} bán {b} và đổi được thêm {c} {toy}.
    {A} chia cho {B} một nửa rồi được {family} tặng {d} {toy} nữa.
    {A} có bao nhiêu {toy}?
Lúc đầu {A} còn {a - b = e} {toy}. Sau đó {A} có {e + c = f} {toy}.
    Chia một nửa, {A} còn {f / 2 = g} {toy}. {A} có {g + d = h} {toy}.

Xe buýt chở {a:15-45} người. Bến một có {b:3-20} người xuống, {c:3-20} người lên.
    Bến hai có {d:3-20} người xuống, {e:3-20} người lên.
    Hỏi trên xe có bao nhiêu người?
Trên xe có {a} khách.
    Ở chợ {b} khách xuống và {c} khách lên, ở trường học {d} khách xuống và {e} khách lên.
    Trên xe còn bao nhiêu khách?
Khi {b} người xuống, xe còn {a - b = f} người. Khi {c} người lên, xe có {f + c = g} người.
    Ở bến hai, xe còn {g - d = h} người. Cuối cùng xe có {h + e = i} người.

Buổi sáng {place:rạp xiếc|bảo tàng|vườn thú} bán {a:15-40} vé, buổi chiều bán ít hơn {b:3-20} vé.
    Trong {p:50-110} vé, số vé còn lại chia đều cho {k:3-9} quầy.
    Hỏi mỗi quầy có bao nhiêu vé?
{place} có {p} vé. Buổi sáng bán {a} vé, nhiều hơn buổi chiều {b} vé.
    Số vé còn lại được chia đều cho {k} quầy.
    Mỗi quầy nhận bao nhiêu vé?
Buổi chiều bán {a - b = c} vé. Cả ngày bán {a + c = d} vé.
    Còn lại {p - d = e} vé. Mỗi quầy có {e / k = f} vé.

Mỗi giờ {A} làm {m:3-9} {craft:cái đèn lồng|tấm thiệp|cái vòng}, {B} làm {p:3-9} {craft}.
    {A} làm {n:2-7} giờ, {B} làm {q:2-7} giờ, rồi xếp đều vào {k:3-10} hộp.
    Hỏi mỗi hộp có bao nhiêu {craft}?
{A} làm {n} giờ, mỗi giờ {m} {craft}.
    {B} làm {q} giờ, mỗi giờ {p} {craft}. Tất cả chia đều vào {k} hộp.
    Mỗi hộp có bao nhiêu {craft}?
{A} làm được {m x n = a} {craft}. {B} làm được {p x q = b} {craft}.
    Cả hai làm {a + b = c} {craft}. Mỗi hộp có {c / k = d} {craft}.

Cần chở {a:40-110} tấn {goods:xi măng|gạo|than|cát}.
    Xe to chở {n:2-8} chuyến, mỗi chuyến {m:5-10} tấn.
    Xe nhỏ chở phần còn lại, mỗi chuyến {k:2-6} tấn.
    Hỏi cả hai xe chở bao nhiêu chuyến?
Xe to đi {n} chuyến, mỗi chuyến {m} tấn {goods}. Xe nhỏ chở nốt, {k} tấn một chuyến, cho đủ {a} tấn.
    Hai xe đi tất cả bao nhiêu chuyến?
Xe to chở {m x n = c} tấn. Còn lại {a - c = d} tấn.
    Xe nhỏ chở {d / k = e} chuyến. Hai xe chở {n + e = f} chuyến.

Một cái bánh cần {m:3-6} quả trứng, một cốc kem cần {p:2-4} quả.
    {A} làm {n:3-10} cái bánh, {k:3-10} cốc kem và đã có {b:6-40} quả.
    Hỏi {A} phải mua thêm bao nhiêu quả trứng?
{A} làm {n} cái bánh, mỗi cái {m} quả trứng, và {k} cốc kem, mỗi cốc {p} quả. Nhà có {b} quả.
    {A} còn thiếu bao nhiêu quả trứng?
Làm bánh cần {m x n = a} quả trứng. Làm kem cần {p x k = c} quả.
    Tất cả cần {a + c = d} quả. Còn thiếu {d - b = e} quả trứng.

{hall:hội trường|nhà hát|rạp chiếu phim} có {n:3-8} hàng {m:6-12} ghế và {p:2-6} hàng {q:5-10} ghế.
    Có {b:20-99} người đến xem.
    Hỏi còn bao nhiêu ghế trống?
Tầng dưới của {hall} có {n} hàng, mỗi hàng {m} ghế, tầng trên có {p} hàng, mỗi hàng {q} ghế.
    Nếu có {b} khách thì còn bao nhiêu ghế trống?
Phần đầu có {m x n = a} ghế. Phần sau có {q x p = c} ghế.
    Tất cả có {a + c = d} ghế. Còn {d - b = e:1-50} ghế trống.

{A} có {a:10-45} cái kẹo, {B} có {b:10-45} cái kẹo. Hai bạn chia đều cho {k:3-9} người.
    Mỗi người ăn {c:2-6} cái và để dành phần còn lại.
    Hỏi {k} người để dành tất cả bao nhiêu cái kẹo?
{k} người chia đều {a} cái kẹo của {A} và {b} cái kẹo của {B}.
    Sau khi mỗi người ăn {c} cái, cả nhóm còn lại bao nhiêu cái kẹo?
Hai bạn có {a + b = d} cái kẹo. Mỗi người được {d / k = e} cái.
    Mỗi người còn {e - c = f:2-12} cái. Cả nhóm còn {f x k = g} cái kẹo.

{A} có {a:30-98/2} {toy:viên bi|quả bóng bay|tấm thẻ|bông hoa}, 50% màu {colour},
    {b:4-30} {toy} màu {colour2}, còn lại màu {colour3}. {A} mua thêm {e:4-30} {toy} màu {colour3}.
    Hỏi số {toy} màu {colour3} nhiều hơn màu {colour2} bao nhiêu?
Trong {a} {toy} của {A} có một nửa màu {colour}, {b} {toy} màu {colour2}, số còn lại màu {colour3}.
    Nếu {A} có thêm {e} {toy} màu {colour3}
    thì số màu {colour3} hơn số màu {colour2} bao nhiêu {toy}?
Có {a / 2 = c} {toy} màu {colour}. Có {c - b = d} {toy} màu {colour3}.
    Sau khi thêm, có {d + e = f} {toy} màu {colour3}. Số màu {colour3} nhiều hơn {f - b = g} {toy}.

{A} có {a:20-50} nghìn đồng, {giver:mẹ|bố|ông|bà|chị gái} cho thêm {b:10-50} nghìn đồng.
    {A} mua {n:2-8} {pen} giá {m:3-9} nghìn đồng mỗi {pen}
    và bỏ một nửa số tiền còn lại vào lợn đất.
    Hỏi {A} bỏ vào lợn đất bao nhiêu nghìn đồng?
{A} có {a} nghìn đồng và được {giver} cho {b} nghìn đồng.
    Mua {n} {pen}, mỗi {pen} {m} nghìn đồng, xong {A} cho {B} một nửa số tiền còn lại.
    Hỏi {B} được bao nhiêu nghìn đồng?
Tất cả có {a + b = c} nghìn đồng. Tiền mua {n} {pen} là {m x n = d} nghìn đồng.
    Còn lại {c - d = e} nghìn đồng. Một nửa là {e / 2 = f} nghìn đồng.

Mỗi ngày {A} viết {m:3-9} trang, {B} viết nhiều hơn {A} {b:2-5} trang.
    Hai bạn viết một cuốn sách {p:60-120} trang.
    Hỏi sau {n:3-8} ngày còn bao nhiêu trang chưa viết?
Cuốn sách dài {p} trang do {A} và {B} cùng viết. Mỗi ngày {A} viết {m} trang, ít hơn {B} {b} trang.
    Sau {n} ngày còn bao nhiêu trang chưa viết?
Mỗi ngày {B} viết {m + b = c} trang. Mỗi ngày hai bạn viết {m + c = d} trang.
    Trong {n} ngày hai bạn viết {d x n = e} trang. Còn {p - e = f} trang.

{A} có {a:4-12} {fruit}, {B} có gấp {k:2-5} lần {A}.
    {B} ăn hết {b:2-20} {fruit}, rồi hai bạn xếp đều tất cả vào {n:3-9} {box:đĩa|túi|giỏ}.
    Hỏi mỗi {box} có bao nhiêu {fruit}?
Số {fruit} của {B} gấp {k} lần của {A}. {A} có {a} {fruit}.
    Khi {B} đã ăn {b} {fruit}, hai bạn chia đều số còn lại vào {n} {box}.
    Mỗi {box} có bao nhiêu {fruit}?
{B} có {a x k = c} {fruit}. {B} còn {c - b = d} {fruit}.
    Hai bạn có {a + d = e} {fruit}. Mỗi {box} có {e / n = f} {fruit}.
"""

SCENARIOS = (ONE_STEP + TWO_STEPS + THREE_STEPS + FOUR_STEPS).strip().split("\n\n")
